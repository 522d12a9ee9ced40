"""Every RPC's policy, in one table: which roles it takes, any of them. A method that is not listed is refused to all.

Whose things a caller may see beyond its own is `api/scope.py`'s business.
"""

from __future__ import annotations

_BY_SERVICE = {
    "ExecutionService": ("caller",),
    "SessionService": ("caller",),
    "AdminService": ("operator",),
}
_BY_METHOD = {
    "RegistryService/PublishSkill": ("publisher",),
    "RegistryService/SetAlias": ("publisher",),
    "RegistryService/YankSkillVersion": ("publisher",),
    "RegistryService/SetSkillVisibility": ("publisher",),
    "RegistryService/ValidateSkill": ("caller",),
    "RegistryService/GetSkill": ("caller",),
    "RegistryService/ListSkills": ("caller",),
    "RegistryService/SearchSkills": ("caller",),
    "RegistryService/ListSkillVersions": ("caller",),
    "RegistryService/DownloadSkill": ("caller",),
    "UsageService/ListUsageRecords": ("caller", "publisher", "biller", "operator"),
    "UsageService/StreamUsageRecords": ("caller", "publisher", "biller", "operator"),
    "UsageService/GetUsageSummary": ("caller", "publisher", "biller", "operator"),
    "UsageService/GetQuota": ("caller", "operator"),
    "UsageService/VerifyLedger": ("biller",),
    "UsageService/StreamCharges": ("caller", "biller"),
    "UsageService/GetStatement": ("caller", "biller"),
    "UsageService/GetPayout": ("caller", "publisher", "biller"),
    "AdminService/ListRatePlans": ("biller", "operator"),
    "AdminService/CloseBillingPeriod": ("biller",),
    "AdminService/RecordCorrection": ("biller",),
    "AdminService/ListSinks": ("biller", "operator"),
    "AdminService/ResumeSink": ("biller", "operator"),
    "AdminService/ListDeadLetters": ("biller", "operator"),
    "AdminService/DiscardDeadLetters": ("biller", "operator"),
    "AdminService/RedriveDeadLetters": ("biller", "operator"),
}
NOBODY = ("nobody",)


def roles_for(method: str) -> tuple[str, ...]:
    """The roles of which `/package.Service/Method` takes any."""
    service, _, name = method.rpartition("/")
    service = service.rpartition(".")[2]
    return _BY_METHOD.get(f"{service}/{name}") or _BY_SERVICE.get(service, NOBODY)
