"""A sandbox that a process enters before it looks at foreign bytes, and that it can't leave again.

- limits: memory, CPU time, no bytes written to files, few descriptors, no processes, no core dumps
- an own uid without groups, where root starts it
- no_new_privs
- Landlock, where the kernel has it: no file, no TCP, no signal to other processes
- seccomp: only the system calls in ALLOWED; every other one fails with EPERM

seccomp is required, because it is what closes sockets and processes. Everything that is needed later has to be imported
and opened before.

A program that checks a file system runs in the same sandbox, with three differences: it may load its own libraries and open
the image, which Landlock alone can limit, so that Landlock is required; it may start itself and its threads, for which
TOOL_CALLS are allowed as well; and it has more memory.
"""

import ctypes
import os
import resource
import struct
from typing import NoReturn

MEMORY_BYTES = 1024**3
TOOL_MEMORY_BYTES = 3 * 1024**3  # e2fsck takes about 1 GiB for a full disk of 16 TiB
DESCRIPTORS = 16
TOOL_THREADS = 64
# No account has it, and it is inside the range that containers map.
READER_ID = 65533

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER = 2
SIGKILL = 9  # importing signal would take milliseconds
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_CREATE_RULESET_VERSION, LANDLOCK_RULE_PATH_BENEATH = 1, 1
LANDLOCK_EXECUTE, LANDLOCK_READ_FILE = 1 << 0, 1 << 2
# Where programs find their libraries. The root of a container may lack some of them.
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")

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
# What a program needs besides, to be loaded, to open the image and to start threads.
TOOL_CALLS = {
    "x86_64": {
        **{"ioctl": 16, "access": 21, "getpid": 39, "clone": 56, "execve": 59, "uname": 63, "fcntl": 72, "fsync": 74},
        **{
            "readlink": 89,
            "getrusage": 98,
            "sysinfo": 99,
            "getuid": 102,
            "getgid": 104,
            "geteuid": 107,
            "getegid": 108,
        },
        **{"prctl": 157, "arch_prctl": 158, "gettid": 186, "sched_getaffinity": 204, "set_tid_address": 218},
        **{"fadvise64": 221, "tgkill": 234, "openat": 257, "newfstatat": 262, "set_robust_list": 273},
        **{"prlimit64": 302, "membarrier": 324, "rseq": 334, "faccessat2": 439},
    },
    "aarch64": {
        **{"ioctl": 29, "faccessat": 48, "getpid": 172, "clone": 220, "execve": 221, "uname": 160, "fcntl": 25},
        **{"fsync": 82, "readlinkat": 78, "getrusage": 165, "sysinfo": 179, "getuid": 174, "getgid": 176},
        **{"geteuid": 175, "getegid": 177, "prctl": 167, "gettid": 178, "sched_getaffinity": 123},
        **{"set_tid_address": 96, "fadvise64": 223, "tgkill": 131, "openat": 56, "newfstatat": 79},
        **{"set_robust_list": 99, "prlimit64": 261, "membarrier": 283, "rseq": 293, "faccessat2": 439},
    },
}
CLONE3 = 435  # The C library falls back to clone only if it doesn't exist.
LOAD, JUMP_IF_EQUAL, JUMP_IF_GREATER_OR_EQUAL, RETURN = 0x20, 0x15, 0x35, 0x06
NUMBER_OFFSET, MACHINE_OFFSET = 0, 4  # in struct seccomp_data
KILL, ALLOW, REFUSE = 0x80000000, 0x7FFF0000, 0x00050001  # REFUSE: EPERM
UNKNOWN_CALL = 0x00050026  # ENOSYS
X32_CALLS = 0x40000000  # x86_64's second table of system calls, which has the same AUDIT_ARCH

libc = ctypes.CDLL(None, use_errno=True)


class SandboxUnavailable(Exception):
    """The kernel lacks a required part of the sandbox, or refuses it."""


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def enter_sandbox(*, cpu_seconds: int) -> None:
    """Give up every right that parsing doesn't need. Raises SandboxUnavailable."""
    _limit(cpu_seconds, memory_bytes=MEMORY_BYTES, threads=0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # xfs_repair refuses to start with that
    _drop_privileges()
    _restrict_by_landlock()
    _restrict_by_seccomp()


def run_tool(arguments: list[str], image: int, *, cpu_seconds: int) -> NoReturn:
    """Enter the sandbox, and become the program at the path `arguments[0]`, which may open the image.

    Raises SandboxUnavailable, OSError.
    """
    files = {image: LANDLOCK_READ_FILE, os.open(arguments[0], os.O_PATH): LANDLOCK_EXECUTE | LANDLOCK_READ_FILE}
    for path in LIBRARIES:
        if os.path.exists(path):
            is_folder = os.path.isdir(path)
            files[os.open(path, os.O_PATH)] = LANDLOCK_READ_FILE | (LANDLOCK_EXECUTE if is_folder else 0)
    _limit(cpu_seconds, memory_bytes=TOOL_MEMORY_BYTES, threads=TOOL_THREADS)
    _drop_privileges()
    if not _restrict_by_landlock(files):
        raise SandboxUnavailable("this kernel has no Landlock")
    _restrict_by_seccomp(for_tool=True)
    os.execve(arguments[0], arguments, {"LC_ALL": "C"})


def _drop_privileges() -> None:
    os.chdir("/")
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(READER_ID, READER_ID, READER_ID)
        os.setresuid(READER_ID, READER_ID, READER_ID)
    _prctl(PR_SET_PDEATHSIG, SIGKILL)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


def _limit(cpu_seconds: int, *, memory_bytes: int, threads: int) -> None:
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_NOFILE: DESCRIPTORS,
        resource.RLIMIT_NPROC: threads,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))


def _prctl(option: int, *arguments: object) -> None:
    padded = [*arguments, *[0] * (4 - len(arguments))]
    words = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in padded]
    if libc.prctl(option, *words):
        raise SandboxUnavailable(f"prctl({option}) failed: {os.strerror(ctypes.get_errno())}")


def _restrict_by_landlock(files: dict[int, int] | None = None) -> bool:
    """Deny every access that this kernel's Landlock handles, except to {descriptor of a file or folder: rights}.

    Returns False for a kernel without it.
    """
    version = libc.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_CREATE_RULESET_VERSION)
    if version < 1:
        return False
    file_rights = 13 if version == 1 else 14 if version == 2 else 15 if version < 5 else 16
    words = [(1 << file_rights) - 1]
    if version >= 4:
        words.append(0b11)  # bind and connect by TCP
    if version >= 6:
        words.append(0b11)  # abstract sockets and signals of processes outside
    attributes = struct.pack(f"={len(words)}Q", *words)
    ruleset = libc.syscall(LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    rules = [struct.pack("=Qi", rights, file) for file, rights in (files or {}).items()]
    if (
        ruleset < 0
        or any(libc.syscall(LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_PATH_BENEATH, rule, 0) for rule in rules)
        or libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0)
    ):
        raise SandboxUnavailable(f"Landlock failed: {os.strerror(ctypes.get_errno())}")
    os.close(ruleset)
    return True


def _restrict_by_seccomp(*, for_tool: bool = False) -> None:
    machine = os.uname().machine
    if machine not in ALLOWED:
        raise SandboxUnavailable(f"no system calls are listed for {machine}")
    architecture, calls = ALLOWED[machine]
    program = build_filter(architecture, calls | TOOL_CALLS[machine] if for_tool else calls)
    _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(_Program(len(program) // 8, program)))


def build_filter(machine: int, calls: dict[str, int]) -> bytes:
    """Return the BPF program: kill calls of another architecture, allow `calls`, refuse the others.

    clone3 looks as if this kernel didn't have it, because a filter can't see whether it would start a thread.
    """

    def instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, value)

    program = [
        instruction(LOAD, MACHINE_OFFSET),
        instruction(JUMP_IF_EQUAL, machine, 1, 0),
        instruction(RETURN, KILL),
        instruction(LOAD, NUMBER_OFFSET),
        instruction(JUMP_IF_GREATER_OR_EQUAL, X32_CALLS, len(calls) + 2, 0),
        instruction(JUMP_IF_EQUAL, CLONE3, 0, 1),
        instruction(RETURN, UNKNOWN_CALL),
    ]
    for position, number in enumerate(sorted(calls.values())):
        program.append(instruction(JUMP_IF_EQUAL, number, len(calls) - position, 0))
    program += [instruction(RETURN, REFUSE), instruction(RETURN, ALLOW)]
    return b"".join(program)
