#!/bin/sh
# The installation steps of the images, PROFILE being cpu or gpu: Debian packages, the locked environment, a user, and
# nothing left over. Containerfile.* run it; helm/image/clean-root.sh runs the same in an empty Debian.
set -eu
profile=${1:?cpu or gpu}
cd /opt/fovea

# g++ and Python's headers: torch.compile and Triton compile kernels for the machine they find themselves on; libnuma1: vLLM's
# CPU kernels are linked to it
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
    bash ca-certificates g++ libnuma1 procps python3 python3-dev python3-venv wget
rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb

FOVEA_PROFILE=$profile sh scripts/setup serve --run-time
rm -rf .cache /root/.cache

# where the chart and the environment find things, whatever Python's version
mkdir -p bin
ln -sf "$(.venv/bin/python -c 'import serving.runtime as r; print(r.haproxy_binary())')" bin/haproxy
for name in fovea ray serve hf; do ln -sf "/opt/fovea/.venv/bin/$name" "/usr/local/bin/$name"; done

id fovea >/dev/null 2>&1 || useradd --uid 10001 --home-dir /tmp --no-create-home --shell /bin/bash fovea
mkdir -p /models /compiled
chown 10001:10001 /models /compiled
.venv/bin/python helm/image/sbom.py > sbom.json
