#!/bin/bash
# Runs what Containerfile.PROFILE runs, in an empty Debian, without a container engine; then starts the stack in there as
# the images' user with a read-only root, as the chart does, and asks it about a picture.  JOBS are images of jobs
# (`quantize distill`): what their Containerfiles add is installed too, and a job is run: INT8 of the embedded model, and a
# student that trains four steps on what the stack in there answers.  Needs root and debootstrap.
#
#     helm/image/clean-root.sh [DIR] [PROFILE] [JOBS]      (a new temporary folder, cpu, none; 6 GB, quantize 4 GB more)
#
# A run that failed leaves its folder; with that as DIR the installation is not done again when it was whole.
# This machine's package sources, mirrors and certificates are used inside as well: KEEP lists what is copied.
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
root=${1:-$(mktemp -d /var/tmp/fovea-root.XXXXXX)}
profile=${2:-cpu}
jobs=${3:-}
file=$top/Containerfile.$profile
# Debian's own package source, not others that this machine may have: their keys are not in there
sources="/etc/apt/sources.list /etc/apt/sources.list.d/debian.sources"
KEEP=${KEEP:-$sources /etc/apt/apt.conf.d /etc/pip.conf /etc/ssl/certs /usr/local/share/ca-certificates /etc/resolv.conf /etc/hosts}
say() { printf '== %s (%s s)\n' "$1" "$SECONDS"; }

mounts=()
finish() {
    for ((i = ${#mounts[@]} - 1; i >= 0; i--)); do umount -R -l "${mounts[i]}"; done
    if [ "$1" = 0 ]; then rm -rf --one-file-system "$root"; else echo "what there is stays in $root"; fi
}
trap 'finish $?' EXIT

installed=
if [ -e "$root/opt/fovea/sbom.json" ]; then installed=1; fi
if [ "$installed" ]; then say "an earlier run has installed everything in $root"; else
say "an empty Debian in $root"
mirror=$(cat $sources 2>/dev/null | sed -n 's/^URIs: *\([^ ]*\).*/\1/p; s/^deb \([^ ]*\) .*/\1/p' | head -1) || true
debootstrap --variant=minbase --include=ca-certificates bookworm "$root" ${mirror:+"$mirror"} >"$root.log" 2>&1 ||
    { tail -5 "$root.log"; exit 1; }
rm -f "$root/etc/apt/sources.list"
for one in $KEEP; do
    [ -e "$one" ] || continue
    rm -rf "${root:?}$one" # a link in there would lead out of it
    mkdir -p "$root$(dirname "$one")" && cp -aL --no-preserve=ownership "$one" "$root$(dirname "$one")/"
done
fi
# a mount point of its own, so that it can be made read-only below the mounts in it
mount --bind "$root" "$root" && mounts+=("$root") && mount --make-private "$root"
for one in proc sys dev ${BIND:-}; do
    one=/${one#/}
    mkdir -p "$root$one" && mount --rbind "$one" "$root$one" && mount --make-rslave "$root$one" && mounts+=("$root$one")
done

if [ -z "$installed" ]; then
say "COPY"
grep '^COPY ' "$file" | while read -r _ line; do
    words=($line)
    to=$root${words[-1]}
    unset 'words[-1]'
    for from in "${words[@]}"; do
        if [ -d "$top/$from" ]; then
            mkdir -p "$to" && tar -C "$top/$from" --exclude=__pycache__ -cf - . | tar -C "$to" -xf -
        else
            mkdir -p "$to" && cp "$top/$from" "$to"
        fi
    done
done

say "RUN"
run=$(sed -n 's/^RUN //p' "$file")
chroot "$root" /bin/sh -c "$run"
fi
size() { du -sh "$root/opt/fovea" "$root/usr" "$root/var"; } # what is bound into it is not of it
size
for job in $jobs; do
    say "RUN of Containerfile.$job"
    run=$(sed -n 's/^RUN //p' "$top/Containerfile.$job")
    PROFILE=$profile chroot "$root" /bin/sh -c "$run"
    size
done

say "the stack, as user 10001, with a read-only root"
mkdir -p "$root/tmp" && mount -t tmpfs -o mode=1777 tmpfs "$root/tmp" && mounts+=("$root/tmp")
mount -t tmpfs -o mode=0755,uid=10001,gid=10001 tmpfs "$root/compiled" && mounts+=("$root/compiled")
case " $jobs " in *" distill "*) mount -t tmpfs -o mode=0755,uid=10001,gid=10001 tmpfs "$root/data" && mounts+=("$root/data") ;; esac
mount -o remount,bind,ro "$root"
settings=$(sed -n '/^ENV /,/[^\\]$/p' "$file" | sed 's/^ENV //; s/\\$//' | tr '\n' ' ')
inside() { chroot --userspec=10001:10001 "$root" /usr/bin/env -i PATH=/usr/local/bin:/usr/bin:/bin HF_HUB_OFFLINE=1 $settings bash -euc "$1"; }
inside '
    if touch /opt/fovea/x 2>/dev/null; then echo "the root can be written to"; exit 1; fi
    cd /opt/fovea && id -u && fovea --version
    fovea serve stack.yaml --port 18123 --json >/tmp/serve.out 2>/tmp/serve.err & server=$!
    trap "kill $server; wait $server" EXIT # also when a step below fails
    for _ in $(seq 300); do
        if wget -qO- http://127.0.0.1:18123/ready >/dev/null 2>&1; then break; fi
        kill -0 $server || { tail -20 /tmp/serve.err; exit 1; }
        sleep 1
    done
    .venv/bin/python -c "
import base64, pathlib, sys
sys.path.insert(0, \"/tmp\")
from models.golden import load_golden
item = load_golden(\"easy-vqa\").items[0]
pathlib.Path(\"/tmp/picture.png\").write_bytes(item.image_bytes())
print(item.question, \"expected:\", item.expected)
pathlib.Path(\"/tmp/question\").write_text(item.question)"
    fovea ask /tmp/picture.png "$(cat /tmp/question)" --url http://127.0.0.1:18123/v1
    if [ -d /data ]; then
        echo "== a job: distill"
        cd /data && PYTHONPATH=/opt/fovea /opt/fovea/.venv/bin/python /opt/fovea/helm/image/clean-distill.py http://127.0.0.1:18123
        fovea distill run recipe.yaml --out /data/student
        ls -l /data/student
    fi
    trap - EXIT
    kill $server && wait $server
'
for job in $jobs; do
    case $job in
        quantize)
            say "a job: $job"
            inside 'cd /opt/fovea && fovea quantize run embedded:qwen2_5_vl --scheme w8a8 --calibration easy-vqa-train --out /tmp/int8 && ls -l /tmp/int8' ;;
    esac
done
say "done"
