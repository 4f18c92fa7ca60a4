#!/bin/sh
# What Ray Serve starts as `haproxy` (RAY_SERVE_HAPROXY_BINARY_PATH): the real one, with its metrics and statistics on
# loopback. Ray writes `bind :PORT` for them, which would open them on every address.
previous=
for argument in "$@"; do
    if [ "$previous" = -f ] && [ -f "$argument" ]; then
        sed -i 's/^\([[:space:]]*bind\)[[:space:]]\{1,\}\**:\([0-9]\)/\1 127.0.0.1:\2/' "$argument"
    fi
    previous=$argument
done
exec "$FOVEA_HAPROXY" "$@"
