"""Every RPC's policy, in one table: which role it takes. A method that is not listed is refused to all."""

from __future__ import annotations

_BY_SERVICE = {
    "ExecutionService": "caller",
    "SessionService": "caller",
    "AdminService": "operator",
}
_BY_METHOD = {
    "RegistryService/PublishSkill": "publisher",
    "RegistryService/SetAlias": "publisher",
    "RegistryService/YankSkillVersion": "publisher",
    "RegistryService/SetSkillVisibility": "publisher",
    "RegistryService/ValidateSkill": "caller",
    "RegistryService/GetSkill": "caller",
    "RegistryService/ListSkills": "caller",
    "RegistryService/SearchSkills": "caller",
    "RegistryService/ListSkillVersions": "caller",
    "RegistryService/DownloadSkill": "caller",
    "UsageService/ListUsageRecords": "caller",
    "UsageService/GetUsageSummary": "caller",
    "UsageService/GetQuota": "caller",
    "UsageService/StreamUsageRecords": "biller",
    "UsageService/VerifyLedger": "biller",
    "UsageService/GetStatement": "biller",
    "UsageService/GetPayout": "biller",
}
NOBODY = "nobody"


def role_for(method: str) -> str:
    """The role that `/package.Service/Method` takes."""
    service, _, name = method.rpartition("/")
    service = service.rpartition(".")[2]
    return _BY_METHOD.get(f"{service}/{name}") or _BY_SERVICE.get(service, NOBODY)
