"""What is in memory, whose turn it is, and the processes that compute: this room's files.

`pool` decides who is in memory, with `spec` (what a request needs of a runner), `queue` and `residence` (what it keeps
account of), `eviction` (who leaves), `starting` and `clock`; `runner` starts, watches and ends one jailed child; `child`
is that child's own main; `probe` and `routes` try every way out of it; `folder` is where the sockets lie, `machine` what
there is to share. Nothing here reads a request or knows a model by name. This file imports nothing, because the child
imports it before its jail shuts.
"""
