#!/bin/sh
# What Containerfile.quantize adds to a serving image of PROFILE (cpu or gpu): the locked quantization environment.
set -eu
profile=${1:?cpu or gpu}
cd /opt/fovea
FOVEA_PROFILE=$profile sh scripts/setup quantize
rm -rf .cache /root/.cache
.venv-quantize/bin/python helm/image/sbom.py > sbom-quantize.json
