{{/*
The Serve config: one application per model, built by serving/app.py from the stack, and the front when there are several.
`replicas` is not part of the arguments: a deployment whose arguments change is started anew, one that is scaled is not.
*/}}
{{- define "fovea.serveConfig" -}}
{{- $stack := deepCopy .Values.stack -}}
{{- $single := eq (len $stack.models) 1 -}}
{{- $groups := dict -}}
{{- range $group := .Values.workerGroups }}{{ range $group.models }}{{ $_ := set $groups . $group.name }}{{ end }}{{ end -}}
{{- $replicas := dict -}}
{{- range $stack.models }}{{ $_ := set $replicas .name (.replicas | default 1) }}{{ $_ := unset . "replicas" }}{{ end -}}
proxy_location: EveryNode
http_options:
  host: 0.0.0.0
  port: {{ include "fovea.port" . }}
  keep_alive_timeout_s: 75
logging_config: {enable_access_log: false, log_level: WARNING, encoding: JSON}
applications:
{{- range $model := $stack.models }}
  - name: {{ $model.name }}
    route_prefix: {{ ternary "/" ($model.route_prefix | default (printf "/%s" $model.name)) $single }}
    import_path: serving.app:build
    args:
      model: {{ $model.name }}
      stack:
        {{- toYaml $stack | nindent 8 }}
    deployments:
      - name: {{ $model.name }}
        num_replicas: {{ get $replicas $model.name }}
        ray_actor_options:
          num_cpus: 1
          num_gpus: {{ $model.gpus | default 0 }}
          resources: {group-{{ get $groups $model.name }}: 0.001}
{{- end }}
{{- if not $single }}
  - name: front
    route_prefix: /
    import_path: serving.app:build
    args:
      stack:
        {{- toYaml $stack | nindent 8 }}
    deployments:
      - name: front
        num_replicas: {{ .Values.frontReplicas }}
{{- end }}
{{- end }}
