"""From a plan to what the driver and the agent get: mounts, environment, command line. Pure but for reading nothing.

Inside a sandbox the places are always the same; they are the contract with Skills (design, section 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from skillcell.core.content import StoredContent
from skillcell.core.plan import Plan
from skillcell.core.skills import Interpreter
from skillcell.core.types import ExecutionRequest, WorkingDir
from skillcell.sandbox.driver import PackageMount
from skillcell.sandbox.job import Delivery, Job

SKILL_DIR = "/skill"
WORKSPACE = "/workspace"
INPUT_FILE = "/input/input.json"
OUTPUT_DIR = "/output"
HOME = "/home/skill"
LAYERS = "/layers"
_NO_UPLOADS: Mapping[str, StoredContent] = {}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def mounts_for(plan: Plan, packages: Path, layers: Path, agent: PackageMount) -> tuple[PackageMount, ...]:
    """The read-only trees of one call: the package, its layers, the agent. `packages` and `layers` hold them by
    digest.
    """
    version = plan.version
    package = PackageMount(version.package_digest, packages / version.package_digest, SKILL_DIR)
    resolved = (PackageMount(la.digest, layers / la.digest, f"{LAYERS}/{la.kind}") for la in version.layers)
    return (package, *resolved, agent)


def environment_for(plan: Plan, execution_id: str, image_env: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of the Skill. Later ones win: image, runtime, manifest, caller; SKILLCELL_* can't
    be set.
    """
    kinds = {layer.kind for layer in plan.version.layers}
    path = image_env.get("PATH", _PATH)
    env = {
        **image_env,
        "HOME": HOME,
        "TMPDIR": "/tmp",  # noqa: S108 - a private tmpfs of the sandbox, not the host's
        "USER": "skill",
        "LOGNAME": "skill",
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        "PWD": WORKSPACE,
    }
    if "pip" in kinds:
        env["PYTHONPATH"] = f"{LAYERS}/pip"
        path = f"{LAYERS}/pip/bin:{path}"
    if plan.entrypoint.script and plan.entrypoint.command[:2] == ("python3", "-m"):
        env["PYTHONPATH"] = ":".join([_module_root(plan), *filter(None, [env.get("PYTHONPATH")])])
    if "npm" in kinds:
        env["NODE_PATH"] = f"{LAYERS}/npm/node_modules"
        path = f"{LAYERS}/npm/node_modules/.bin:{path}"
    env["PATH"] = path
    env.update(plan.version.spec.env)
    env.update(plan.request.env)
    env.update(
        SKILLCELL_EXECUTION_ID=execution_id,
        SKILLCELL_SKILL=plan.version.reference,
        SKILLCELL_ENTRYPOINT=plan.entrypoint.name,
        SKILLCELL_SKILL_DIR=WORKSPACE if plan.working_dir is WorkingDir.SKILL else SKILL_DIR,
        SKILLCELL_WORKSPACE=WORKSPACE,
        SKILLCELL_INPUT=INPUT_FILE,
        SKILLCELL_OUTPUT_DIR=OUTPUT_DIR,
        SKILLCELL_RESULT=f"{OUTPUT_DIR}/result.json",
        SKILLCELL_TIMEOUT_SECONDS=f"{plan.limits.wall_ns / 1e9:g}",
    )
    return env


def _module_root(plan: Plan) -> str:
    """The folder from which `python3 -m` finds the script: what is left of its path above the module's own name."""
    root = WORKSPACE if plan.working_dir is WorkingDir.SKILL else SKILL_DIR
    path = PurePosixPath(plan.entrypoint.script).with_suffix("").parts
    depth = len(plan.entrypoint.command[2].split(".")) + (path[-1] == "__main__")
    return str(PurePosixPath(root, *path[: len(path) - depth]))


def job_for(
    plan: Plan, execution_id: str, image_env: Mapping[str, str], uploads: Mapping[str, StoredContent] = _NO_UPLOADS
) -> Job:
    """The job as the agent gets it; `uploads` has all that the plan names, by digest."""
    entrypoint = plan.entrypoint
    copy = plan.working_dir is WorkingDir.SKILL
    root = WORKSPACE if copy else SKILL_DIR
    kind, argv, script, function = "exec", list(plan.arguments), "", ""
    if entrypoint.handler:
        path, _, function = entrypoint.handler.rpartition(":")
        script = f"{root}/{path}"
        kind = "node-function" if entrypoint.interpreter is Interpreter.NODE else "python-function"
    elif entrypoint.script and entrypoint.command[:2] == ("python3", entrypoint.script):
        # What the waiting interpreter can become without starting another one.
        kind, script = "python-script", f"{root}/{entrypoint.script}"
        argv = [*entrypoint.command[2:], *argv]
    else:
        command = (f"{root}/{part}" if part == entrypoint.script and part else part for part in entrypoint.command)
        argv = [*command, *argv]
    return Job(
        kind=kind,
        argv=tuple(argv),
        script=script,
        function=function,
        env=environment_for(plan, execution_id, image_env),
        cwd=WORKSPACE,
        copy_skill=copy,
        stdin=uploads[plan.stdin_upload] if plan.stdin_upload else plan.stdin,
        files=_deliveries(plan.request, uploads),
        limits=plan.limits,
        collect=(*plan.request.collect, *entrypoint.outputs.values()),
    )


def _deliveries(request: ExecutionRequest, uploads: Mapping[str, StoredContent]) -> tuple[Delivery, ...]:
    files = [
        Delivery(
            "workspace",
            file.name,
            uploads[file.upload] if file.upload else file.content,
            0o755 if file.executable else 0o644,
        )
        for file in request.files
    ]
    if request.input_upload:
        files.append(Delivery("input", "input.json", uploads[request.input_upload], 0o444))
    elif request.input_json is not None:
        files.append(Delivery("input", "input.json", request.input_json, 0o444))
    return tuple(files)
