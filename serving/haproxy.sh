#!/bin/sh
# What Ray Serve starts as `haproxy` (RAY_SERVE_HAPROXY_BINARY_PATH): the real one, with its metrics and statistics on
# loopback. Ray writes `bind :PORT` and `bind *:PORT` for them, which would open them on every address; for a stack that
# listens on 0.0.0.0 it writes `bind *:PORT` as well, and that one stays. And a proxy that has just started knows of no
# application yet: what comes is told to come again (503), not that there is no such path (404).
again='{"error": {"message": "The proxy has just started. Try again in 1 s.", "type": "server_error", "param": null, "code": "starting"}}'
previous=
for argument in "$@"; do
    if [ "$previous" = -f ] && [ -f "$argument" ]; then
        for section in 'frontend prometheus' 'listen stats'; do
            sed -i "/^$section\$/,/^[a-z]/ s/^\([[:space:]]*bind\)[[:space:]]\{1,\}\**:\([0-9]\)/\1 127.0.0.1:\2/" "$argument"
        done
        grep -q '^[[:space:]]*use_backend' "$argument" || sed -i "s|^\([[:space:]]*http-request return\) status 404 .*|\1 status 503 content-type application/json hdr Retry-After 1 string '$again'|" "$argument"
    fi
    previous=$argument
done
exec "$FOVEA_HAPROXY" "$@"
