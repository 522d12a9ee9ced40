"""From the names that parts of the gateway give their failures to the stable reasons that callers may rely on.

The stable ones are `ErrorReason` in errors.proto. A driver or a store has finer words for an operator: callers get
the stable reason, and the finer word beside it as metadata `cause`.
"""

from __future__ import annotations

from skillcell.core.errors import Fault, FaultKind
from skillcell.v1 import errors_pb2

STABLE = frozenset(name.removeprefix("ERROR_REASON_") for name, number in errors_pb2.ErrorReason.items() if number)
_CAUSES = {
    "DRIVER_UNAVAILABLE": (
        *("ENGINE_BUSY", "ENGINE_CONFLICT", "ENGINE_NOT_FOUND", "ENGINE_REFUSED", "ENGINE_TIMEOUT", "ENGINE_TLS"),
        *("ENGINE_TOO_OLD", "ENGINE_UNAVAILABLE"),
        *("LAUNCHER_FAILED", "LAUNCHER_GONE", "LAUNCHER_IO", "LAUNCHER_NOT_STARTED"),
        *("CGROUPS_MISSING", "CGROUP_NOT_CREATED", "CGROUP_NOT_DELEGATED", "CGROUP_ROOT", "ARCHITECTURE"),
        *("LIMIT_NOT_ENFORCED", "SWAP_NOT_LIMITED", "NOT_ROOT", "UIDS_EXHAUSTED", "DEPENDENCY_BUILD_LOST"),
        *("SANDBOX_NOT_STARTED", "SANDBOX_WILL_NOT_DIE", "PACKAGE_VOLUME_FOREIGN"),
    ),
    "IMAGE_UNAVAILABLE": (
        *("IMAGE_ARCHITECTURE", "IMAGE_BOOTSTRAP_FAILED", "IMAGE_BOOTSTRAP_NEEDS", "IMAGE_BROKEN"),
        *("IMAGE_BUILD_FAILED", "IMAGE_COMPRESSION", "IMAGE_DECLARES_VOLUMES", "IMAGE_DOWNLOAD", "IMAGE_INTEGRITY"),
        *("IMAGE_LOCK_STALE", "IMAGE_NOT_IMPORTED", "IMAGE_NOT_PULLED", "IMAGE_NOT_READY", "IMAGE_PULL_FAILED"),
        *("IMAGE_RECIPES_MISSING", "IMAGE_RECIPE_BROKEN", "IMAGE_WITHOUT_PYTHON"),
    ),
    "STORE_UNAVAILABLE": (
        *("LEDGER_UNAVAILABLE", "PACKAGE_STORE_UNAVAILABLE", "STORAGE_UNAVAILABLE", "STORE_FORBIDDEN"),
        *("STORE_FOREIGN", "STORE_NEWER"),
    ),
    "DEPENDENCY_UNRESOLVED": ("PACKAGE_INDEX_INVALID", "PACKAGE_TOOL_MISSING", "PROGRAM_MISSING"),
    "GUARANTEE_UNAVAILABLE": ("ISOLATION_UNAVAILABLE",),
    "WRONG_STATE": ("HEAD_FILE_INVALID", "METRICS_PORT_UNAVAILABLE", "SINK_CHOICE_NEEDED", "SINK_NOT_HELD"),
    "INVALID_FIELD": ("INVALID_IMAGE",),
    "ARCHIVE_INVALID": ("INVALID_IMAGE_ARCHIVE",),
    "CONTENT_MISMATCH": ("IMAGE_DIGEST_MISMATCH",),
    "INTERNAL": (
        *("CGROUP_NOT_FOUND", "CGROUP_NOT_REMOVED", "EXECUTION_NOT_ADMITTED", "PACKAGE_ENTRY"),
        *("PACKAGE_LOST", "SANDBOX_EXISTS", "SANDBOX_ID", "TREE_MISSING"),
    ),
}
STABLE_BY_CAUSE = {cause: reason for reason, causes in _CAUSES.items() for cause in causes}


def stable_reason(fault: Fault) -> str:
    """The reason that callers see; one that is in no list is told by its class."""
    if fault.reason in STABLE:
        return fault.reason
    by_class = "DRIVER_UNAVAILABLE" if fault.kind is FaultKind.UNAVAILABLE else "INTERNAL"
    return STABLE_BY_CAUSE.get(fault.reason, by_class)
