{{/*
The Serve config: one application per model, built by serving/app.py from the stack, and the front when there are several.
A deployment whose arguments change is started anew. So `replicas` is not among them, a model's application knows of no
other model (serving/parts.py), and the front, which
asks for no keys (the models do), is told of the models by its user_config, which changes in place.
*/}}
{{- define "fovea.serveConfig" -}}
{{- $stack := deepCopy .Values.stack -}}
{{- $single := include "fovea.single" . -}}
{{- $groups := dict -}}
{{- range $group := .Values.workerGroups }}{{ range $group.models }}{{ $_ := set $groups . $group.name }}{{ end }}{{ end -}}
{{- $routes := dict -}}
{{- $adapters := dict -}}
proxy_location: EveryNode
http_options:
  host: 0.0.0.0
  port: {{ include "fovea.port" . }}
  keep_alive_timeout_s: 75
logging_config: {enable_access_log: false, log_level: WARNING, encoding: JSON}
applications:
{{- range $given := $stack.models }}
{{- $model := omit $given "replicas" }}
{{- $_ := set $routes $model.name (include "fovea.prefix" $model) }}
{{- range $model.adapters }}{{ $_ := set $adapters .name (include "fovea.prefix" $model) }}{{ end }}
  - name: {{ $model.name }}
    route_prefix: {{ ternary "/" (include "fovea.prefix" $model) (eq $single "true") }}
    import_path: serving.app:build
    args:
      model: {{ $model.name }}
      stack:
        {{- include "fovea.ownPart" (dict "stack" $stack "model" $model) | nindent 8 }}
    deployments:
      - name: {{ $model.name }}
        {{- include "fovea.replicas" (dict "root" $ "name" $model.name "replicas" ($given.replicas | default 1)) | nindent 8 }}
        user_config: {replicas: {{ include "fovea.mostReplicas" (dict "root" $ "name" $model.name "replicas" ($given.replicas | default 1)) }}}
        ray_actor_options:
          num_cpus: 1
          num_gpus: {{ $model.gpus | default 0 }}
          resources: {group-{{ get $groups $model.name }}: 0.001}
{{- end }}
{{- if ne $single "true" }}
  - name: front
    route_prefix: /
    import_path: serving.app:build
    args:
      stack:
        {{- toYaml (merge (dict "listen" (merge (dict "public" true) $stack.listen)) (pick $stack "limits" "affinity" "metrics" "traces" "drain_s")) | nindent 8 }}
    deployments:
      - name: front
        {{- include "fovea.replicas" (dict "root" $ "name" "front" "replicas" .Values.frontReplicas) | nindent 8 }}
        user_config:
          models: {{ toJson $routes }}
          {{- with $adapters }}
          adapters: {{ toJson . }}
          {{- end }}
{{- end }}
{{- end }}

{{/* "true" when the only model answers at / itself, without the front */}}
{{- define "fovea.single" -}}
{{ and (eq (len .Values.stack.models) 1) (ne (.Values.stack.front | default "auto") "always") }}
{{- end }}

{{- define "fovea.prefix" -}}{{ .route_prefix | default (printf "/%s" .name) }}{{- end }}

{{/* (stack, model): the stack as one model's application gets it: the other models are in it nowhere. */}}
{{- define "fovea.ownPart" -}}
{{- $part := deepCopy .stack -}}
{{- $_ := set $part "models" (list .model) -}}
{{- $names := list .model.name -}}
{{- range .model.adapters }}{{ $names = append $names .name }}{{ end -}}
{{- with $part.identify -}}
  {{- range .tenants -}}
    {{- if kindIs "slice" .models -}}
      {{- $own := list -}}
      {{- range .models }}{{ if has . $names }}{{ $own = append $own . }}{{ end }}{{ end -}}
      {{- $_ := set . "models" ($own | default (list "-")) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- toYaml $part -}}
{{- end }}

{{/* (root, name): the entry of `autoscaling` for a model or the front, as YAML; empty when there is none */}}
{{- define "fovea.scaled" -}}
{{- range .root.Values.autoscaling }}{{ if eq .model $.name }}{{ toYaml . }}{{ end }}{{ end -}}
{{- end }}
{{/* (root, name, replicas): the most replicas that there can be */}}
{{- define "fovea.mostReplicas" -}}
{{ (include "fovea.scaled" . | fromYaml).maxReplicas | default .replicas | int }}
{{- end }}

{{/*
(root, name, replicas): how many replicas a deployment has. A fixed number is autoscaling between N and N: Ray Serve would
start all replicas anew when a policy comes or goes, and changes bounds in place.
*/}}
{{- define "fovea.replicas" -}}
{{- $fixed := dict "minReplicas" .replicas "maxReplicas" .replicas -}}
{{- with include "fovea.scaled" . | fromYaml | default $fixed -}}
autoscaling_config:
  min_replicas: {{ ternary 1 .minReplicas (kindIs "invalid" .minReplicas) }}
  initial_replicas: {{ $.replicas }}
  max_replicas: {{ .maxReplicas }}
  target_ongoing_requests: {{ .ongoingRequests | default 8 }}
  upscale_delay_s: {{ ternary 30 .upSeconds (kindIs "invalid" .upSeconds) }}
  downscale_delay_s: {{ ternary 300 .downSeconds (kindIs "invalid" .downSeconds) }}
  downscale_to_zero_delay_s: {{ ternary 900 .zeroSeconds (kindIs "invalid" .zeroSeconds) }}
  policy: {policy_function: serving.autoscale:policy}
{{- end -}}
{{- end }}
