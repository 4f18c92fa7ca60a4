{{/* What is brought into the model cache, autoscaling and jobs; called by _validate.tpl. */}}
{{- define "fovea.validateSources" -}}
{{- $download := .Values.modelCache.download -}}
{{- if and $download.sources (not $download.enabled) -}}
  {{- fail "modelCache.download.enabled: nothing would copy modelCache.download.sources; set it" -}}
{{- end -}}
{{- $names := dict -}}
{{- range $i, $one := $download.sources -}}
  {{- $at := printf "modelCache.download.sources[%d]" $i -}}
  {{- if not (regexMatch "^((s3|gs)://[^/ ]+/[^ ]+|pvc://[a-z0-9.-]+(/[^ ]*)?)$" $one.from) -}}
    {{- fail (printf "%s.from: %q is none of s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, pvc://CLAIM/FOLDER; write one of them" $at $one.from) -}}
  {{- end -}}
  {{- if or (hasKey $names $one.name) (eq $one.name "hub") -}}
    {{- fail (printf "%s.name: %q is taken; give each its own folder" $at $one.name) -}}
  {{- end -}}
  {{- $_ := set $names $one.name true -}}
{{- end -}}
{{- range $i, $model := .Values.stack.models -}}
  {{- if and (hasPrefix "/models/" $model.source) (not $.Values.modelCache.enabled) -}}
    {{- fail (printf "stack.models[%d].source: %q is in the model cache, which is off; set modelCache.enabled" $i $model.source) -}}
  {{- end -}}
  {{- if and (hasPrefix "registry:" $model.source) (not $.Values.registry) -}}
    {{- fail (printf "registry: is missing, and stack.models[%d].source is %q; name the registry's folder" $i $model.source) -}}
  {{- end -}}
{{- end -}}
{{- if and (hasPrefix "/data/" .Values.registry) (not .Values.dataVolume.enabled) -}}
  {{- fail (printf "registry: %q is on the data volume, which is off; set dataVolume.enabled" .Values.registry) -}}
{{- end -}}
{{- end }}

{{/* "true" when there may be no replica of the only model, so that the head has to take its requests */}}
{{- define "fovea.toZero" -}}
{{- if eq (include "fovea.single" .) "true" -}}
  {{- range .Values.autoscaling }}{{ if and (not (kindIs "invalid" .minReplicas)) (eq (int .minReplicas) 0) }}true{{ end }}{{ end -}}
{{- end -}}
{{- end }}

{{- define "fovea.validateAutoscaling" -}}
{{- $models := dict -}}
{{- range .Values.stack.models }}{{ $_ := set $models .name (.replicas | default 1 | int) }}{{ end -}}
{{- $known := keys $models | sortAlpha -}}
{{- if ne (include "fovea.single" .) "true" -}}
  {{- $_ := set $models "front" (int .Values.frontReplicas) -}}
  {{- $known = append $known "front" -}}
{{- end -}}
{{- $seen := dict -}}
{{- range $i, $one := .Values.autoscaling -}}
  {{- $at := printf "autoscaling[%d]" $i -}}
  {{- if not (hasKey $models $one.model) -}}
    {{- fail (printf "%s.model: there is no %q; there is %s" $at $one.model (join ", " $known)) -}}
  {{- end -}}
  {{- if hasKey $seen $one.model -}}{{- fail (printf "%s.model: %q is there twice; keep one" $at $one.model) -}}{{- end -}}
  {{- $_ := set $seen $one.model true -}}
  {{- $least := ternary 1 $one.minReplicas (kindIs "invalid" $one.minReplicas) | int -}}
  {{- $start := get $models $one.model -}}
  {{- if or (lt $start $least) (gt $start (int $one.maxReplicas)) -}}
    {{- fail (printf "%s: %q starts with %d replicas (%s), which is not from minReplicas %d to maxReplicas %d" $at $one.model $start (ternary "frontReplicas" "stack.models[].replicas" (eq $one.model "front")) $least (int $one.maxReplicas)) -}}
  {{- end -}}
  {{- if and (eq $least 0) (eq $one.model "front") -}}
    {{- fail (printf "%s.minReplicas: 0, but the front answers for all models; set at least 1" $at) -}}
  {{- end -}}
  {{- if and (eq $least 0) $.Values.observability.podMonitor.enabled (eq $one.model (index $.Values.stack.models 0).name) -}}
    {{- fail (printf "%s.minReplicas: 0, but /metrics of the stack is asked of %q, so every scrape would wake it; put a model first that stays, set minReplicas: 1, or observability.podMonitor.enabled: false" $at $one.model) -}}
  {{- end -}}
{{- end -}}
{{- end }}

{{- define "fovea.validateJobs" -}}
{{- $jobs := .Values.jobs -}}
{{- if and (or $jobs.quantize $jobs.distill) (not .Values.dataVolume.enabled) -}}
  {{- fail "jobs: their results are in /data; set dataVolume.enabled" -}}
{{- end -}}
{{- $names := dict -}}
{{- range $kind := list "quantize" "distill" -}}
  {{- range $i, $job := get $jobs $kind -}}
    {{- $at := printf "jobs.%s[%d]" $kind $i -}}
    {{- if hasKey $names $job.name -}}{{- fail (printf "%s.name: %q is used twice; give each job its own" $at $job.name) -}}{{- end -}}
    {{- $_ := set $names $job.name true -}}
    {{- if not (get ($job.resources.limits | default dict) "memory") -}}{{- fail (printf "%s.resources.limits.memory: is missing; set it" $at) -}}{{- end -}}
    {{- if $job.register -}}
      {{- if not $job.golden -}}{{- fail (printf "%s.golden: is missing; only what passes the gate is registered as %q" $at $job.register) -}}{{- end -}}
      {{- if not $.Values.registry -}}{{- fail (printf "registry: is missing; %s.register is %q" $at $job.register) -}}{{- end -}}
    {{- end -}}
    {{- include "fovea.validateNodes" (dict "root" $ "at" $at "group" $job "gpus" ($job.gpus | default 0)) -}}
  {{- end -}}
{{- end -}}
{{- end }}
