#!/usr/bin/env bash
# Generates runtime/skillcell/v1 from these protos; with --check, says whether the committed code is what they give.
#
# Python does not need buf/validate/validate.proto at run time: the rules ride in the descriptors' options, where the
# protovalidate library finds them. So the import is taken out of the compiled descriptors before code is generated.
# The package then registers no file that another library in the process might register too, server reflection is
# complete without it, and nothing called `buf` has to be installed.
#
# The output depends on the versions of grpcio-tools and mypy-protobuf: use those of the `dev` extra.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
target=$here/../runtime/skillcell/v1
python=${PYTHON:-$here/../.venv/bin/python}
[ -x "$(command -v "$python")" ] || python=python3
"$python" -c 'import grpc_tools, mypy_protobuf' 2>/dev/null || {
  echo "generate.sh: needs grpcio-tools and mypy-protobuf: pip install -e '.[dev]', or set PYTHON" >&2
  exit 2
}
bin=$("$python" -c 'import sys, pathlib; print(pathlib.Path(sys.executable).parent)')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/out"

cd "$here"
sources=(skillcell/v1/*.proto)
"$python" -m grpc_tools.protoc -I. --include_imports --include_source_info \
  --descriptor_set_out="$work/with_rules_import.binpb" "${sources[@]}"

"$python" - "$work/with_rules_import.binpb" "$work/all.binpb" <<'PYTHON'
import sys
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

RULES = "buf/validate/validate.proto"
compiled = FileDescriptorSet.FromString(Path(sys.argv[1]).read_bytes())
kept = [file for file in compiled.file if file.name != RULES]
for file in kept:
    if file.public_dependency or file.weak_dependency:
        sys.exit(f"{file.name}: public and weak imports are counted by place, which dropping {RULES} would shift")
    if RULES in file.dependency:
        file.dependency.remove(RULES)
Path(sys.argv[2]).write_bytes(FileDescriptorSet(file=kept).SerializeToString(deterministic=True))
PYTHON

"$python" -m grpc_tools.protoc --descriptor_set_in="$work/all.binpb" \
  --plugin=protoc-gen-mypy="$bin/protoc-gen-mypy" --plugin=protoc-gen-mypy_grpc="$bin/protoc-gen-mypy_grpc" \
  --python_out="$work/out" --grpc_python_out="$work/out" --mypy_out=quiet:"$work/out" --mypy_grpc_out=quiet:"$work/out" \
  "${sources[@]}"
# Files without a service get an empty gRPC module, which nobody needs.
for source in "${sources[@]}"; do
  grep -q '^service ' "$source" || rm -f "$work/out/${source%.proto}"_pb2_grpc.py{,i}
done

if [ "${1:-}" = --check ]; then
  if ! diff -r -x __init__.py -x __pycache__ "$work/out/skillcell/v1" "$target" >"$work/diff"; then
    head -20 "$work/diff" >&2
    echo "generate.sh: runtime/skillcell/v1 is not what protos/ gives: run protos/generate.sh and commit" >&2
    exit 1
  fi
else
  mkdir -p "$target"
  rm -f "$target"/*_pb2.py "$target"/*_pb2.pyi "$target"/*_pb2_grpc.py "$target"/*_pb2_grpc.pyi
  cp "$work/out/skillcell/v1/"* "$target/"
fi
