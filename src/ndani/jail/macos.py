"""The jail on macOS: a seatbelt profile through `sandbox_init`. Written from documentation, NEVER RUN on a Mac.

Apple calls the function deprecated; Chromium and Bazel still use the same mechanism. The profile refuses every outbound
connection and every new program. It lets files be read only where the engine and the system need it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os

from ndani.errors import Unconfined
from ndani.jail import Confinement, Policy, limits

_F_GETPATH = 50

_PROFILE = """(version 1)
(allow default)
(deny network*)
(deny process-exec*)
(deny process-fork)
(deny file-write*)
(allow file-write* (literal "/dev/null"))
(deny file-read-data (subpath "/Users") (subpath "/private/tmp") (subpath "/private/var/folders") (subpath "/Volumes"))
"""
#: What a listening process needs in addition.
_LISTENING = """(allow network-bind network-inbound (local unix-socket))
(allow file-write* (subpath {folder}))
(allow file-read-data (subpath {folder}){files})
"""


def enter(policy: Policy) -> Confinement:
    """Apply the profile. Raises Unconfined when the system refuses it."""
    files = ""
    for descriptor in policy.files:
        path = fcntl.fcntl(descriptor, _F_GETPATH, bytes(1024)).rstrip(b"\0").decode()
        files += f" (literal {_quote(path)})"
    limits.lower(policy, in_user_namespace=False)
    profile = _PROFILE
    if policy.socket_folder:
        profile += _LISTENING.format(folder=_quote(os.path.realpath(policy.socket_folder)), files=files)
    system = ctypes.CDLL(None)
    message = ctypes.c_char_p()
    if system.sandbox_init(profile.encode(), ctypes.c_uint64(0), ctypes.byref(message)) != 0:
        raise Unconfined("this system would not apply the seatbelt profile, so the model was not loaded; please report it")
    return Confinement(seatbelt=True, missing=("The seatbelt profile was written from documents and never run on a Mac.",))


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
