#!/usr/bin/env bash
# The main job, shown: serve, publish, call, results, artifacts, usage, metrics, and a clean stop that leaves nothing.
# Everything is real and of its own: a gateway on free loopback ports, data and client state below DATA (.data/demo).
set -euo pipefail
cd "$(dirname "$0")/../.."
data=${DATA:-.data}/demo
driver=${SKILLCELL_DRIVER:-auto}
samples=tests/skills
export PATH="$PWD/${VENV:-.venv}/bin:$PATH" XDG_STATE_HOME="$PWD/$data/state"
unset SKILLCELL_ADDRESS SKILLCELL_API_KEY
# A terminal that nobody looks at still gets the pictures for one: DEMO_COLOR=1
if [ -t 1 ] || [ "${DEMO_COLOR:-}" ]; then bold=$'\033[1m' green=$'\033[32m' off=$'\033[0m'; else bold='' green='' off=''; fi

say() { printf '\n%s# %s%s\n' "$green" "$*" "$off"; }
show() {
    local shown='' word
    for word in "$@"; do
        case "$word" in *[[:space:]\{]*) word="'$word'" ;; esac
        shown+=" $word"
    done
    printf '%s$%s%s\n' "$bold" "$shown" "$off"
    "$@"
}

if [ "$(id -u)" != 0 ] && { [ "$driver" = oci ] || ! docker info >/dev/null 2>&1; }; then
    echo "demo: without a Docker engine that you may use, this needs root: sudo make demo" >&2
    exit 1
fi

mkdir -p "$data"
flock --nonblock "$data/lock" true || { echo "demo: another one runs in $data" >&2; exit 1; }
# Each time from the beginning, but for the images and the name by which an engine knows what is ours.
find "$data" -mindepth 1 -maxdepth 1 ! -name images ! -name instance -exec rm -rf {} +
skillcell serve --driver "$driver" --data "$data" --listen 127.0.0.1:0 --metrics 127.0.0.1:0 \
    >"$data/serve.out" 2>"$data/serve.log" &
gateway=$!
stop() {
    if kill -TERM "$gateway" 2>/dev/null; then wait "$gateway" || true; fi
}
trap stop EXIT
for _ in $(seq 300); do
    grep -q '^data in' "$data/serve.out" && break
    kill -0 "$gateway" 2>/dev/null || { cat "$data/serve.log" >&2; exit 1; }
    sleep 0.1
done

say "A gateway serves on this machine"
printf '%s$ skillcell serve &%s\n' "$bold" "$off"
grep -E '^(serving|metrics)' "$data/serve.out"

say "A Skill is a folder; publishing makes it one immutable version"
show skillcell publish $samples/monte-carlo --as demo/monte-carlo

say "A function: its log and progress live, its JSON result checked against a schema, then what it used"
show skillcell call demo/monte-carlo --input '{"spot": 100, "strike": 105, "samples": 400000}'

say "A script: files in, files out"
show skillcell publish $samples/csv-report --as demo/csv-report
show skillcell call demo/csv-report --file $samples/csv-report/assets/planets.csv --out "$data/report"

say "A filter in Node: standard input in, standard output out, into the next program"
show skillcell publish $samples/markdown-html --as demo/markdown-html
printf '%s$ skillcell call demo/markdown-html --stdin %s --quiet > %s%s\n' \
    "$bold" "$data/report/report.md" "$data/report/report.html" "$off"
skillcell call demo/markdown-html --stdin "$data/report/report.md" --quiet >"$data/report/report.html"
ls -l "$data/report/report.html" | awk '{print $5 " bytes"}'

say "Usage, from the ledger and from the metrics: the same integers"
show skillcell usage summary
show skillcell usage verify
metrics=$(sed -n 's/^metrics at //p' "$data/serve.out")
printf '%s$ curl -s %s | grep ^skillcell_calls_total%s\n' "$bold" "$metrics" "$off"
python - "$metrics" <<'PYTHON'
import sys, urllib.request
for line in urllib.request.urlopen(sys.argv[1], timeout=10).read().decode().splitlines():
    if line.startswith("skillcell_calls_total"):
        print(line)
PYTHON

say "Stopped; nothing is left"
stop
trap - EXIT
instance=$(cat "$data/instance")
left=$(
    find /sys/fs/cgroup -maxdepth 4 -type d -name "*skillcell*$instance*" 2>/dev/null || true
    grep -F -e "$PWD/$data" -e "$instance" /proc/self/mountinfo || true
    grep -lzF "$PWD/$data" /proc/[0-9]*/cmdline 2>/dev/null || true
)
if [ -n "$left" ]; then
    printf 'left behind:\n%s\n' "$left" >&2
    exit 1
fi
echo "no process, cgroup or mount; artifacts are in $data/report, logs in $data/serve.log"
