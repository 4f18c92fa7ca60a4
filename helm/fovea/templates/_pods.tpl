{{/* (root, pod, grace): what head and workers share, less containers and volumes */}}
{{- define "fovea.podSpec" -}}
serviceAccountName: {{ include "fovea.serviceAccount" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ .grace }}
securityContext:
  {{- include "fovea.podSecurity" .root | nindent 2 }}
{{- include "fovea.pullSecrets" .root }}
{{- with .pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .pod.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.gpuProducts }}
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            - {key: nvidia.com/gpu.product, operator: In, values: {{ toJson . }}}
{{- end }}
{{- $tolerations := .pod.tolerations | default list -}}
{{- if .pod.gpus -}}
  {{- $tolerations = append $tolerations (dict "key" (.pod.gpuResource | default "nvidia.com/gpu") "operator" "Exists" "effect" "NoSchedule") -}}
{{- end }}
{{- with $tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "fovea.workerResources" -}}
{{- $resources := deepCopy .resources -}}
{{- if .gpus -}}
  {{- range $part := list "requests" "limits" -}}
    {{- $_ := set $resources $part (merge (dict ($.gpuResource | default "nvidia.com/gpu") (toString $.gpus)) (get $resources $part | default dict)) -}}
  {{- end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end }}

{{- define "fovea.startupFailures" -}}{{ div (add .Values.probes.loadSeconds .Values.probes.periodSeconds -1) .Values.probes.periodSeconds }}{{- end }}

{{/* (root, kind): quantization jobs have an image with their own environment, distillation runs in the serving image */}}
{{- define "fovea.jobImage" -}}
{{- $image := include "fovea.image" .root -}}
{{- $own := .root.Values.jobs.image -}}
{{- if eq .kind "distill" -}}{{ $image }}
{{- else if $own.digest -}}{{ $own.repository | default .root.Values.image.repository }}@{{ $own.digest }}
{{- else if $own.tag -}}{{ $own.repository | default .root.Values.image.repository }}:{{ $own.tag }}
{{- else if .root.Values.image.digest -}}{{ fail "jobs.image.digest: is missing; image has a digest, and the quantization image has another one" }}
{{- else -}}{{ $own.repository | default .root.Values.image.repository }}:{{ regexFind "[^:]+$" $image }}-quantize
{{- end -}}
{{- end }}

{{/* (root, kind, name): what stands before a job's command, so that a Pushgateway is told; nothing where there is none */}}
{{- define "fovea.told" -}}
{{- with .root.Values.observability.pushgateway -}}
- /opt/fovea/.venv/bin/python
- /chart/job.py
- {{ . | quote }}
- {{ include "fovea.fullname" $.root }}
- {{ $.kind }}
- {{ $.name | quote }}
{{- end -}}
{{- end }}

{{/* (root, kind, job): the command, each word quoted for the shell that Ray runs it with */}}
{{- define "fovea.jobCommand" -}}
{{- $out := printf "/data/%s/%s" .kind .job.name -}}
{{- $told := include "fovea.told" (dict "root" .root "kind" .kind "name" .job.name) | fromYamlArray -}}
{{- $words := concat $told (list "/opt/fovea/.venv/bin/fovea" .kind "run") -}}
{{- if eq .kind "quantize" -}}
  {{- $words = concat $words (list .job.model "--scheme" (.job.scheme | default "w4a16") "--out" $out) -}}
  {{- with .job.golden -}}{{- $words = concat $words (list "--golden" .) -}}{{- end -}}
  {{- with .job.register -}}{{- $words = concat $words (list "--register" .) -}}{{- end -}}
{{- else -}}
  {{- $words = concat $words (list "/recipe/recipe.yaml" "--out" $out) -}}
{{- end -}}
{{- range $i, $word := concat $words (.job.args | default list) -}}
{{ if $i }} {{ end }}'{{ $word | replace "'" "'\\''" }}'
{{- end -}}
{{- end }}
