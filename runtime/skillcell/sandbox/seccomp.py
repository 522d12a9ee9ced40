"""The system calls a sandbox may make: one positive list, rendered for OCI runtimes and for Docker.

Everything not listed fails with EPERM. The list is Docker's default less what has no use in a Skill and a history of
holes: namespaces, mounts, ptrace and its kin, keyring, bpf, perf, userfaultfd, io_uring and old AIO, vmsplice,
clocks, file handles, AF_VSOCK and every other address family but UNIX, INET, INET6 and route NETLINK (glibc's
getaddrinfo asks it for interfaces).

A reader could get four things wrong. prlimit64 is for the caller's own limits alone (pid 0, as getrlimit and setrlimit
of every libc ask): the agent has the Skill's uid, and one without open files or CPU time left dies, which would look
like a fault of the platform and not be billed. clone3 must fail with ENOSYS, not EPERM, for glibc to fall back to
clone, whose flags a filter can see. Only the native architecture is listed, so 32-bit and x32 calls kill their caller:
their arguments lie elsewhere, and a filter by argument would look at the wrong ones. And names that an older
libseccomp doesn't know are left out by the runtime, which only makes the filter stricter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skillcell.core.errors import precondition

_EPERM = 1
_ENOSYS = 38

# CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET: linux/sched.h
_CLONE_NAMESPACES = 0x7E020000

# AF_UNIX, AF_INET, AF_INET6, and AF_NETLINK with protocol NETLINK_ROUTE: linux/socket.h, linux/netlink.h
_SOCKET_FAMILIES = (1, 2, 10)
_AF_NETLINK, _NETLINK_ROUTE = 16, 0

# PER_LINUX, PER_LINUX with the host's uname (UNAME26), PER_LINUX32 and both, and the query: as Docker's default
_PERSONALITIES = (0x0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)

_ARCHITECTURES = {"amd64": "SCMP_ARCH_X86_64", "arm64": "SCMP_ARCH_AARCH64"}

_ALLOWED = """
accept accept4 access alarm bind brk cachestat capget capset chdir chmod chown clock_getres clock_gettime
clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl
epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64
fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork
fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex futex_requeue futex_wait futex_waitv futex_wake
futimesat get_robust_list getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername
getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage getsid getsockname
getsockopt gettid gettimeofday getuid getxattr inotify_add_watch inotify_init inotify_init1 inotify_rm_watch ioctl
ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lgetxattr link
linkat listen listxattr llistxattr lremovexattr lseek lsetxattr lstat madvise map_shadow_stack membarrier
memfd_create mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mprotect mq_getsetattr mq_notify
mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall
munmap nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free
pkey_mprotect poll ppoll prctl pread64 preadv preadv2 pselect6 pwrite64 pwritev pwritev2 read readahead
readlink readlinkat readv recvfrom recvmmsg recvmsg removexattr rename renameat renameat2 restart_syscall rmdir
rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler
sched_yield seccomp select semctl semget semop semtimedop sendfile sendmmsg sendmsg sendto set_robust_list
set_tid_address setfsgid setfsuid setgid setgroups setitimer setpgid setpriority setregid setresgid setresuid
setreuid setrlimit setsid setsockopt setuid shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4
splice stat statfs statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create
timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times
tkill truncate umask uname unlink unlinkat utime utimensat utimes vfork wait4 waitid write writev
"""

_ALLOWED_BY_ARCHITECTURE = {"amd64": ("arch_prctl",), "arm64": ()}


def allowed_calls(architecture: str) -> tuple[str, ...]:
    """Names that are allowed whatever their arguments, sorted."""
    return tuple(sorted({*_ALLOWED.split(), *_ALLOWED_BY_ARCHITECTURE[_known(architecture)]}))


def oci_profile(architecture: str) -> dict[str, Any]:
    """`linux.seccomp` of the OCI runtime specification."""
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _EPERM,
        "architectures": [_ARCHITECTURES[_known(architecture)]],
        "syscalls": _rules(architecture),
    }


def docker_profile(architecture: str) -> dict[str, Any]:
    """What Docker's `--security-opt seccomp=` reads: the same form, without sub-architectures."""
    return oci_profile(architecture)


def _known(architecture: str) -> str:
    if architecture not in _ARCHITECTURES:
        known = ", ".join(sorted(_ARCHITECTURES))
        raise precondition(
            "ARCHITECTURE", f"no seccomp profile for architecture {architecture!r}; there is one for {known}"
        )
    return architecture


def _rules(architecture: str) -> list[dict[str, Any]]:
    rules: list[dict[str, Any]] = [
        {"names": list(allowed_calls(architecture)), "action": "SCMP_ACT_ALLOW"},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS},
        _allow("clone", _argument(0, _CLONE_NAMESPACES, "SCMP_CMP_MASKED_EQ", 0)),
        _allow("prlimit64", _argument(0, 0)),
        _allow("socketpair", _argument(0, 1)),
        _allow("socket", _argument(0, _AF_NETLINK), _argument(2, _NETLINK_ROUTE)),
    ]
    rules += [_allow("socket", _argument(0, family)) for family in _SOCKET_FAMILIES]
    rules += [_allow("personality", _argument(0, value)) for value in _PERSONALITIES]
    return rules


def _allow(name: str, *arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": list(arguments)}


def _argument(index: int, value: int, op: str = "SCMP_CMP_EQ", value_two: int | None = None) -> dict[str, Any]:
    argument: dict[str, Any] = {"index": index, "value": value, "op": op}
    if value_two is not None:
        argument["valueTwo"] = value_two
    return argument
