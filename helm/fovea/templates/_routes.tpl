{{/* What is open to clients outside: the API and the readiness probe, not the metrics. */}}
{{- define "fovea.publicPrefixes" -}}
{{- $prefixes := list "/v1" "/ready" -}}
{{- if ne (include "fovea.single" .) "true" -}}
{{- range .Values.stack.models }}{{ $prefixes = append $prefixes (printf "%s/v1" (include "fovea.prefix" .)) }}{{ end -}}
{{- end -}}
{{- join " " $prefixes -}}
{{- end }}

{{- define "fovea.publicPaths" -}}
{{- range $prefix := splitList " " (include "fovea.publicPrefixes" .) }}
- path: {{ $prefix }}
  pathType: Prefix
  backend:
    service:
      name: {{ include "fovea.serveService" $ }}
      port: {number: {{ include "fovea.port" $ }}}
{{- end }}
{{- end }}
