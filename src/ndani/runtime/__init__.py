"""Which models are in memory, which request gets a slot, and the processes that compute.

`pool` decides which models are loaded, with `spec` (what a request needs of a runner), `queue` and `residence` (the pool's
state), `eviction` (which model has to go), `starting` and `clock`. `runner` starts, watches and stops one jailed child process;
`runner_main` has the main function of that process; `probe` and `egress` try every way out of it. `folder` makes the folder for the
sockets, `hardware` measures cores and memory. Nothing here reads a request or knows a model by name. This file imports nothing,
because the child process imports it before its jail is closed.
"""
