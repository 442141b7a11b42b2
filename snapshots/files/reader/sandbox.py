"""A sandbox that a process enters before it looks at foreign bytes, and that it can't leave again.

- limits: memory, CPU time, no bytes written to files, few descriptors, no processes, no core dumps
- an own uid without groups, where root starts it
- no_new_privs
- Landlock, where the kernel has it: no file, no TCP, no signal to other processes
- seccomp: only the system calls in ALLOWED; every other one fails with EPERM

seccomp is required, because it is what closes sockets and processes. Everything that is needed later has to be imported
and opened before.
"""

import ctypes
import os
import resource
import struct

MEMORY_BYTES = 1024**3
DESCRIPTORS = 16
# No account has it, and it is inside the range that containers map.
READER_ID = 65533

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER = 2
SIGKILL = 9  # importing signal would take milliseconds
LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF = 444, 446
LANDLOCK_CREATE_RULESET_VERSION = 1

# {machine: (AUDIT_ARCH, {system call: number})}. What an interpreter needs to compute, and to read and write descriptors
# that are open already.
ALLOWED = {
    "x86_64": (
        0xC000003E,
        {
            **{"read": 0, "write": 1, "close": 3, "fstat": 5, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11},
            **{"brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17, "readv": 19},
            **{"writev": 20, "sched_yield": 24, "mremap": 25, "madvise": 28, "exit": 60, "futex": 202},
            **{"clock_gettime": 228, "clock_nanosleep": 230, "exit_group": 231, "getrandom": 318},
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            **{"read": 63, "write": 64, "close": 57, "fstat": 80, "lseek": 62, "mmap": 222, "mprotect": 226},
            **{"munmap": 215, "brk": 214, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139},
            **{"pread64": 67, "readv": 65, "writev": 66, "sched_yield": 124, "mremap": 216, "madvise": 233},
            **{"exit": 93, "futex": 98, "clock_gettime": 113, "clock_nanosleep": 115, "exit_group": 94},
            **{"getrandom": 278},
        },
    ),
}
LOAD, JUMP_IF_EQUAL, JUMP_IF_GREATER_OR_EQUAL, RETURN = 0x20, 0x15, 0x35, 0x06
NUMBER_OFFSET, MACHINE_OFFSET = 0, 4  # in struct seccomp_data
KILL, ALLOW, REFUSE = 0x80000000, 0x7FFF0000, 0x00050001  # REFUSE: EPERM
X32_CALLS = 0x40000000  # x86_64's second table of system calls, which has the same AUDIT_ARCH

libc = ctypes.CDLL(None, use_errno=True)


class SandboxUnavailable(Exception):
    """The kernel lacks a required part of the sandbox, or refuses it."""


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def enter_sandbox(*, cpu_seconds: int) -> None:
    """Give up every right that parsing doesn't need. Raises SandboxUnavailable."""
    _limit(cpu_seconds)
    os.chdir("/")
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(READER_ID, READER_ID, READER_ID)
        os.setresuid(READER_ID, READER_ID, READER_ID)
    _prctl(PR_SET_PDEATHSIG, SIGKILL)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _restrict_by_landlock()
    _restrict_by_seccomp()


def _limit(cpu_seconds: int) -> None:
    limits = {
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: DESCRIPTORS,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))


def _prctl(option: int, *arguments: object) -> None:
    padded = [*arguments, *[0] * (4 - len(arguments))]
    words = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in padded]
    if libc.prctl(option, *words):
        raise SandboxUnavailable(f"prctl({option}) failed: {os.strerror(ctypes.get_errno())}")


def _restrict_by_landlock() -> None:
    """Deny every access that this kernel's Landlock handles. A kernel without it is left to seccomp."""
    version = libc.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_CREATE_RULESET_VERSION)
    if version < 1:
        return
    file_rights = 13 if version == 1 else 14 if version == 2 else 15 if version < 5 else 16
    words = [(1 << file_rights) - 1]
    if version >= 4:
        words.append(0b11)  # bind and connect by TCP
    if version >= 6:
        words.append(0b11)  # abstract sockets and signals of processes outside
    attributes = struct.pack(f"={len(words)}Q", *words)
    ruleset = libc.syscall(LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0 or libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0):
        raise SandboxUnavailable(f"Landlock failed: {os.strerror(ctypes.get_errno())}")
    os.close(ruleset)


def _restrict_by_seccomp() -> None:
    machine = os.uname().machine
    if machine not in ALLOWED:
        raise SandboxUnavailable(f"no system calls are listed for {machine}")
    program = build_filter(*ALLOWED[machine])
    _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(_Program(len(program) // 8, program)))


def build_filter(machine: int, calls: dict[str, int]) -> bytes:
    """Return the BPF program: kill calls of another architecture, allow `calls`, refuse the others."""

    def instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, value)

    program = [
        instruction(LOAD, MACHINE_OFFSET),
        instruction(JUMP_IF_EQUAL, machine, 1, 0),
        instruction(RETURN, KILL),
        instruction(LOAD, NUMBER_OFFSET),
        instruction(JUMP_IF_GREATER_OR_EQUAL, X32_CALLS, len(calls), 0),
    ]
    for position, number in enumerate(sorted(calls.values())):
        program.append(instruction(JUMP_IF_EQUAL, number, len(calls) - position, 0))
    program += [instruction(RETURN, REFUSE), instruction(RETURN, ALLOW)]
    return b"".join(program)
