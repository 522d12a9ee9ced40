"""The hardening as written: no privilege in the configuration, no dangerous call in the list, every limit in place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from skillcell.core.errors import Fault
from skillcell.core.types import Isolation, Limits
from skillcell.sandbox import seccomp
from skillcell.sandbox.driver import Guarantee, PackageMount, SandboxSpec
from skillcell.sandbox.hardening import (
    GUARANTEES,
    MASKED_PATHS,
    WRITABLE,
    Placement,
    layer_names,
    oci_config,
    rlimits,
    tmpfs_options,
)
from skillcell.sandbox.images import Image

_FORBIDDEN_NAMES = """
_sysctl acct add_key adjtimex bpf chroot clock_adjtime clock_settime create_module delete_module fanotify_init
finit_module fsconfig fsmount fsopen fspick get_kernel_syms get_mempolicy init_module io_setup io_submit
io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie
mbind memfd_secret migrate_pages modify_ldt mount mount_setattr move_mount move_pages name_to_handle_at nfsservctl
open_by_handle_at open_tree perf_event_open pidfd_getfd pivot_root process_madvise process_vm_readv
process_vm_writev ptrace query_module quotactl quotactl_fd reboot request_key set_mempolicy setdomainname
sethostname setns settimeofday swapoff swapon syslog sysfs umount umount2 unshare uselib userfaultfd ustat vhangup
vm86 vm86old vmsplice
"""
FORBIDDEN = frozenset(_FORBIDDEN_NAMES.split())

SPEC = SandboxSpec(
    "sbx_1",
    Image("python-3.11", f"sha256:{'0' * 64}", Path("/images/x/rootfs"), "amd64", {"PATH": "/usr/bin", "LANG": "C"}),
    Isolation.STANDARD,
    Limits(),
    (PackageMount("a" * 64, Path("/data/a"), "/skill"), PackageMount("b" * 64, Path("/data/b"), "/layers/pip")),
    ("/usr/bin/python3", "-c", "pass"),
)
PLACE = Placement(Path("/run/skillcell/oci/sbx_1"), Path("/run/skillcell/oci/trees"), 2_000_000, 2_000_001)


def config() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(oci_config(SPEC, PLACE))
    return loaded


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_no_dangerous_call_is_allowed_whatever_its_arguments(architecture: str) -> None:
    allowed = set(seccomp.allowed_calls(architecture))
    assert not allowed & FORBIDDEN
    assert not allowed & {"clone", "clone3", "socket", "socketpair", "personality"}
    profile = seccomp.oci_profile(architecture)
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert len(profile["architectures"]) == 1
    named = {name for rule in profile["syscalls"] for name in rule["names"]}
    assert not named & FORBIDDEN


def test_calls_by_argument_are_bounded() -> None:
    rules = [rule for rule in seccomp.docker_profile("amd64")["syscalls"] if "args" in rule]
    clone = next(rule for rule in rules if rule["names"] == ["clone"])
    assert clone["args"] == [{"index": 0, "value": 0x7E020000, "op": "SCMP_CMP_MASKED_EQ", "valueTwo": 0}]
    families = {rule["args"][0]["value"] for rule in rules if rule["names"] == ["socket"]}
    assert families == {1, 2, 10, 16}
    assert all(rule["action"] == "SCMP_ACT_ALLOW" for rule in rules)


def test_only_ones_own_resource_limits_can_be_asked_and_set() -> None:
    """The agent has the Skill's uid: without open files or CPU time it would die, and the call not be billed."""
    assert "prlimit64" not in seccomp.allowed_calls("amd64")
    (rule,) = [rule for rule in seccomp.oci_profile("amd64")["syscalls"] if "prlimit64" in rule["names"]]
    assert rule["args"] == [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]


def test_an_architecture_without_a_profile_is_refused() -> None:
    with pytest.raises(Fault, match="riscv64"):
        seccomp.oci_profile("riscv64")


def test_the_configuration_grants_nothing() -> None:
    process = config()["process"]
    assert process["noNewPrivileges"] is True
    assert all(granted == [] for granted in process["capabilities"].values())
    assert process["user"]["uid"] != 0
    assert set(process["env"]) == {"PATH=/usr/bin", "LANG=C"}
    assert config()["root"]["readonly"] is True
    kinds = {namespace["type"] for namespace in config()["linux"]["namespaces"]}
    assert kinds == {"pid", "ipc", "uts", "mount", "network", "cgroup", "user"}
    assert all("path" not in namespace for namespace in config()["linux"]["namespaces"])


def test_the_users_of_the_namespace_are_two_and_neither_is_the_hosts_root() -> None:
    mappings = config()["linux"]["uidMappings"]
    assert mappings == config()["linux"]["gidMappings"]
    assert [(row["hostID"], row["size"]) for row in mappings] == [(2_000_000, 1), (2_000_001, 1)]


def test_no_source_lies_outside_of_what_the_launcher_made() -> None:
    sources = [mount["source"] for mount in config()["mounts"] if mount["type"] == "bind"]
    assert all(source.startswith("/run/skillcell/oci/") for source in sources)
    assert config()["root"]["path"].startswith("/run/skillcell/oci/trees/")
    text = oci_config(SPEC, PLACE).decode()
    assert "/data/" not in text
    assert "/images/" not in text


def test_every_writable_place_is_in_the_one_tmpfs() -> None:
    writable = {m["destination"] for m in config()["mounts"] if m["type"] == "bind" and "rw" in m["options"]}
    assert writable == set(WRITABLE.values())
    assert {"/workspace", "/tmp", "/output", "/input", "/home/skill", "/run/skillcell", "/dev/shm"} == writable
    for mount in config()["mounts"]:
        assert "nosuid" in mount["options"]
        assert "nodev" in mount["options"] or mount["destination"] == "/dev"


def test_layers_get_mount_points_before_they_are_mounted() -> None:
    assert layer_names(SPEC.mounts) == ("pip",)
    targets = [mount["destination"] for mount in config()["mounts"]]
    assert targets.index("/layers") < targets.index("/layers/pip")


def test_what_docker_masks_is_masked_and_more() -> None:
    masked = set(config()["linux"]["maskedPaths"])
    docker = {"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list"}
    assert docker | {"/proc/scsi", "/proc/sched_debug", "/proc/timer_stats"} <= masked
    assert {"/proc/cmdline", "/proc/sys/kernel/random/boot_id"} <= masked
    assert {"/sys/firmware", "/sys/fs/cgroup", "/sys/devices/virtual/powercap"} <= set(MASKED_PATHS)


def test_a_full_disk_is_met_before_the_file_size_limit() -> None:
    limits = dict(rlimits(Limits(disk_bytes=1 << 20, open_files=77)))
    assert limits["RLIMIT_NOFILE"] == 77
    assert limits["RLIMIT_CORE"] == 0
    assert 1 << 20 < limits["RLIMIT_FSIZE"] <= 1 << 21


@pytest.mark.parametrize("name", ["disk_bytes", "disk_files"])
def test_no_disk_limit_is_never_unlimited(name: str) -> None:
    with pytest.raises(Fault, match=name):
        tmpfs_options(replace(Limits(), **{name: 0}))


def test_the_strongest_promise_of_the_shared_kernel_is_complete() -> None:
    assert GUARANTEES["oci", Isolation.STANDARD] == frozenset(Guarantee)
