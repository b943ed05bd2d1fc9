"""What is in memory, whose turn it is, and the processes that compute: this room's files.

`pool` owns who is in memory; `runner` starts, watches and ends one jailed child; `child` is that child's own main; `probe`
and `routes` try every way out of it; `folder` is where the sockets lie. Nothing here reads a request or knows a model by
name. This file imports nothing, because the child imports it before its jail shuts.
"""
