{{/* What the schema cannot say: each message has the field, the arithmetic where there is one, and the fix. */}}
{{- define "fovea.validate" -}}
{{- $stack := .Values.stack -}}
{{- $listen := $stack.listen | default dict -}}
{{- $host := $listen.host | default "127.0.0.1" -}}
{{- if or (hasPrefix "127." $host) (eq $host "localhost") (eq $host "::1") -}}
  {{- fail (printf "stack.listen.host: %q is loopback, nobody outside the pod could call it; set 0.0.0.0 with `identify`, or with `public: true`" $host) -}}
{{- end -}}
{{- if and (ne $host "0.0.0.0") (ne $host "::") -}}
  {{- fail (printf "stack.listen.host: %q is one address, and each pod has its own; set 0.0.0.0" $host) -}}
{{- end -}}
{{- if not (or $listen.public $stack.identify) -}}
  {{- fail "stack.identify: nobody would need a key; add the section, or set stack.listen.public: true if whoever the NetworkPolicy lets in may call" -}}
{{- end -}}
{{- include "fovea.validateModels" . -}}
{{- include "fovea.validateGroups" . -}}
{{- include "fovea.validateProxy" . -}}
{{- include "fovea.validateOptions" . -}}
{{- include "fovea.validateSources" . -}}
{{- include "fovea.validateAutoscaling" . -}}
{{- include "fovea.validateJobs" . -}}
{{- include "fovea.validateStores" . -}}
{{- include "fovea.validateSecrets" . -}}
{{- end }}

{{- define "fovea.validateModels" -}}
{{- $names := dict -}}{{- $routes := dict -}}
{{- range $i, $model := .Values.stack.models -}}
  {{- if hasKey $names $model.name -}}
    {{- fail (printf "stack.models[%d].name: %q is used twice; give each model its own" $i $model.name) -}}
  {{- end -}}
  {{- $_ := set $names $model.name true -}}
  {{- $route := include "fovea.prefix" $model -}}
  {{- if hasKey $routes $route -}}
    {{- fail (printf "stack.models[%d].route_prefix: %q is the route of %q as well; give each model its own" $i $route (get $routes $route)) -}}
  {{- end -}}
  {{- $_ := set $routes $route $model.name -}}
  {{- $homes := list -}}
  {{- range $group := $.Values.workerGroups -}}{{- if has $model.name $group.models -}}{{- $homes = append $homes $group.name -}}{{- end -}}{{- end -}}
  {{- if ne (len $homes) 1 -}}
    {{- fail (printf "workerGroups: model %q is in %d groups (%s); list it under `models` of exactly one" $model.name (len $homes) (join ", " $homes)) -}}
  {{- end -}}
  {{- $scheme := regexFind "^[A-Za-z][A-Za-z0-9+.-]*://" $model.source -}}
  {{- if $scheme -}}
    {{- fail (printf "stack.models[%d].source: unknown scheme %q; use embedded:NAME, registry:NAME@live, a folder in a mounted volume, or a hub id; what is in a bucket is listed in modelCache.download.sources" $i $scheme) -}}
  {{- end -}}
{{- end -}}
{{- end }}

{{- define "fovea.validateGroups" -}}
{{- $groups := dict -}}{{- $models := dict -}}
{{- range .Values.stack.models }}{{- $_ := set $models .name . -}}{{- end -}}
{{- $catalog := .Files.Get "files/catalog.yaml" | fromYaml -}}
{{- $allCpus := 0 -}}{{- $allNeeded := 0 -}}
{{- range $i, $group := .Values.workerGroups -}}
  {{- $at := printf "workerGroups[%d]" $i -}}
  {{- if hasKey $groups $group.name -}}{{- fail (printf "%s.name: %q is used twice; give each group its own" $at $group.name) -}}{{- end -}}
  {{- $_ := set $groups $group.name true -}}
  {{- $replicas := ternary 1 $group.replicas (kindIs "invalid" $group.replicas) | int -}}
  {{- $most := $replicas -}}
  {{- if $.Values.nodeAutoscaling.enabled -}}
    {{- $most = $group.maxReplicas | default $replicas | int -}}
    {{- $least := $group.minReplicas | default 0 | int -}}
    {{- if or (gt $least $replicas) (gt $replicas $most) -}}
      {{- fail (printf "%s.replicas: %d is not from minReplicas %d to maxReplicas %d" $at $replicas $least $most) -}}
    {{- end -}}
  {{- end -}}
  {{- $gpus := $group.gpus | default 0 | int -}}
  {{- $cpus := $group.cpusForReplicas | default 2 | int -}}
  {{- $needGpus := 0.0 -}}{{- $needCpus := 0 -}}
  {{- range $j, $name := $group.models -}}
    {{- if not (hasKey $models $name) -}}
      {{- fail (printf "%s.models[%d]: the stack has no model %q; it has %s" $at $j $name (keys $models | sortAlpha | join ", ")) -}}
    {{- end -}}
    {{- $model := get $models $name -}}
    {{- $each := $model.gpus | default 0 | float64 -}}
    {{- if and (gt $each 0.0) (eq $gpus 0) -}}
      {{- fail (printf "%s.gpus: 0, but a replica of %q needs %v; set it, or stack.models[].gpus to 0" $at $name $each) -}}
    {{- end -}}
    {{- if gt $each (float64 $gpus) -}}
      {{- fail (printf "%s.gpus: %d in a pod, but a replica of %q needs %v of one pod; raise it" $at $gpus $name $each) -}}
    {{- end -}}
    {{- $count := include "fovea.mostReplicas" (dict "root" $ "name" $name "replicas" ($model.replicas | default 1)) | int -}}
    {{- $needGpus = addf $needGpus (mulf $each (float64 $count)) -}}
    {{- $needCpus = add $needCpus $count -}}
    {{- if gt $each 1.0 -}}
      {{- $parallel := mul (get ($model.engine_args | default dict) "tensor_parallel_size" | default 1) (get ($model.engine_args | default dict) "pipeline_parallel_size" | default 1) -}}
      {{- if ne (float64 $parallel) $each -}}
        {{- fail (printf "stack.models: %q reserves %v GPUs, but tensor_parallel_size x pipeline_parallel_size is %d; set engine_args.tensor_parallel_size: %v" $name $each $parallel $each) -}}
      {{- end -}}
    {{- end -}}
    {{- if gt $each 0.0 -}}
      {{- include "fovea.validateFit" (dict "at" $at "group" $group "model" $model "catalog" $catalog "each" $each) -}}
    {{- end -}}
  {{- end -}}
  {{- if gt $needGpus (mulf (float64 $most) (float64 $gpus)) -}}
    {{- fail (printf "%s: its models need %v GPUs (replicas x gpus), %d pods of %d GPUs have %d; raise replicas or gpus" $at $needGpus $most $gpus (mul $most $gpus)) -}}
  {{- end -}}
  {{- if gt (int $needCpus) (mul $most $cpus | int) -}}
    {{- fail (printf "%s.cpusForReplicas: its models have %d replicas, %d pods of %d have room for %d; raise it or replicas" $at $needCpus $most $cpus (mul $most $cpus)) -}}
  {{- end -}}
  {{- $allCpus = add $allCpus (mul $most $cpus) | int -}}
  {{- $allNeeded = add $allNeeded $needCpus | int -}}
  {{- if and $group.gpuType (eq $gpus 0) -}}
    {{- fail (printf "%s.gpuType: %q, but gpus is 0; set gpus" $at $group.gpuType) -}}
  {{- end -}}
  {{- include "fovea.validateNodes" (dict "root" $ "at" $at "group" $group "gpus" $gpus) -}}
{{- end -}}
{{- $front := include "fovea.mostReplicas" (dict "root" . "name" "front" "replicas" .Values.frontReplicas) | int -}}
{{- if and (ne (include "fovea.single" .) "true") (lt $allCpus (add $allNeeded $front | int)) -}}
  {{- fail (printf "workerGroups: all pods have room for %d replicas (cpusForReplicas), the models take %d and the front %d; raise a group's cpusForReplicas" $allCpus $allNeeded $front) -}}
{{- end -}}
{{- end }}

{{/* Weights, KV cache of one longest request and overhead against the memory of the GPUs asked for (models/fit.py). */}}
{{- define "fovea.validateFit" -}}
{{- $memory := .group.gpuMemoryGiB | default 0.0 | float64 -}}
{{- if and .group.gpuType (eq $memory 0.0) -}}
  {{- $known := get .catalog.gpus (lower .group.gpuType) -}}
  {{- if not $known -}}
    {{- fail (printf "%s.gpuType: %q is not known (%s); use one of them, or set gpuMemoryGiB" .at .group.gpuType (keys .catalog.gpus | sortAlpha | join ", ")) -}}
  {{- end -}}
  {{- $memory = float64 $known -}}
{{- end -}}
{{- $scheme := "bf16" -}}
{{- $name := .model.source | lower | base -}}
{{- range $one, $suffix := .catalog.suffixes -}}
  {{- if regexMatch $suffix $name -}}{{- $scheme = $one -}}{{- $name = regexReplaceAll $suffix $name "" -}}{{- end -}}
{{- end -}}
{{- $variant := get .catalog.models $name -}}
{{- if and $variant (gt $memory 0.0) -}}
  {{- if eq (.model.dtype | default "auto") "float32" -}}{{- $scheme = "fp32" -}}{{- end -}}
  {{- with .model.quantization -}}{{- $scheme = get $.catalog.quantization . | default $scheme -}}{{- end -}}
  {{- $gpus := max 1 (int (ceil .each)) -}}
  {{- $share := 1.0 -}}
  {{- if gt .each 1.0 -}}{{- $share = 1.0 -}}{{- else -}}{{- $share = .each -}}{{- end -}}
  {{- $utilization := (get (.model.engine_args | default dict) "gpu_memory_utilization") | default (mulf 0.92 $share) | float64 -}}
  {{- $budget := mulf $memory $utilization -}}
  {{- $weights := divf (float64 (get $variant.weights_gib $scheme)) (float64 $gpus) -}}
  {{- $tokens := .model.max_model_len | default $variant.context -}}
  {{- $kv := divf (mulf (float64 $tokens) (float64 $variant.kv_mib_per_token)) 1024.0 (float64 (min $gpus (int $variant.kv_heads))) -}}
  {{- $needed := addf $weights $kv 1.0 -}}
  {{- if gt $needed $budget -}}
    {{- fail (printf "%s.gpuType: %s does not fit on %d x %s: weights %.2f GiB (%s) + KV cache of one request of %v tokens %.2f GiB + overhead 1.00 GiB = %.2f GiB, and %.2f GiB x %.2f = %.2f GiB are there per GPU; take a larger GPU, more `gpus`, a quantized checkpoint or a smaller max_model_len" .at .model.source $gpus (.group.gpuType | default "GPU") $weights $scheme $tokens $kv $needed $memory $utilization $budget) -}}
  {{- end -}}
{{- end -}}
{{- end }}

{{/* With a cluster at hand (helm install, --dry-run=server): a GPU product that no node has would leave pods pending. */}}
{{- define "fovea.validateNodes" -}}
{{- if and .root.Values.preflight .gpus .group.gpuProducts (not .root.Values.nodeAutoscaling.enabled) -}}
  {{- $nodes := (lookup "v1" "Node" "" "").items -}}
  {{- if $nodes -}}
    {{- $seen := list -}}
    {{- range $nodes -}}{{- with get (.metadata.labels | default dict) "nvidia.com/gpu.product" -}}{{- $seen = append $seen . -}}{{- end -}}{{- end -}}
    {{- $found := false -}}
    {{- range .group.gpuProducts -}}{{- if has . $seen -}}{{- $found = true -}}{{- end -}}{{- end -}}
    {{- if not $found -}}
      {{- fail (printf "%s.gpuProducts: no node has %s; the nodes have %s" .at (join " or " .group.gpuProducts) ($seen | uniq | sortAlpha | join ", " | default "no GPU")) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- end }}

{{- define "fovea.validateProxy" -}}
{{- $need := mulf 2.0 (float64 .Values.proxy.bufferBytes) (float64 .Values.proxy.maxConnections) -}}
{{- $pods := dict "head" .Values.head -}}
{{- range .Values.workerGroups -}}{{- $_ := set $pods (printf "workerGroups %s" .name) . -}}{{- end -}}
{{- range $name, $pod := $pods -}}
  {{- $limit := get ($pod.resources.limits | default dict) "memory" -}}
  {{- if not $limit -}}{{- fail (printf "%s: resources.limits.memory is missing; set it" $name) -}}{{- end -}}
  {{- $room := mulf (include "fovea.bytes" $limit | float64) $.Values.proxy.memoryShare -}}
  {{- if gt $need $room -}}
    {{- fail (printf "proxy: 2 buffers x %v B x %v connections = %.2f GiB, more than memoryShare %v of the %s of %s = %.2f GiB; lower bufferBytes or maxConnections, or raise the memory" $.Values.proxy.bufferBytes $.Values.proxy.maxConnections (divf $need 1073741824.0) $.Values.proxy.memoryShare $limit $name (divf $room 1073741824.0)) -}}
  {{- end -}}
{{- end -}}
{{- end }}

{{- define "fovea.validateOptions" -}}
{{- with .Values.ingress -}}
  {{- if and .enabled (not .host) -}}{{- fail "ingress.host: is missing; set the host name that clients call" -}}{{- end -}}
{{- end -}}
{{- if and .Values.gateway.enabled (not .Values.gateway.parents) -}}{{- fail "gateway.parents: is empty; name the Gateway" -}}{{- end -}}
{{- if and (eq .Values.upgrade.strategy "NewClusterWithIncrementalUpgrade") (not .Values.upgrade.gatewayClassName) -}}
  {{- fail "upgrade.gatewayClassName: is missing; the incremental upgrade moves traffic with a Gateway" -}}
{{- end -}}
{{- if and .Values.gcsFaultTolerance.enabled (not (regexMatch "^[^:/]+:[0-9]+$" .Values.gcsFaultTolerance.redisAddress)) -}}
  {{- fail (printf "gcsFaultTolerance.redisAddress: %q is not HOST:PORT" .Values.gcsFaultTolerance.redisAddress) -}}
{{- end -}}
{{- $hub := include "fovea.hubModels" . | trim -}}
{{- if and $hub .Values.offline (not .Values.modelCache.enabled) -}}
  {{- fail (printf "modelCache.enabled: the stack names hub models (%s) and `offline` forbids pods to fetch them; enable the cache and its download, or set offline: false" ($hub | replace "\n" ", ")) -}}
{{- end -}}
{{- if and .Values.modelCache.download.enabled (not .Values.modelCache.enabled) -}}
  {{- fail "modelCache.download.enabled: there is no cache to download to; set modelCache.enabled" -}}
{{- end -}}
{{- if and .Values.evaluation.enabled .Values.observability.rules.enabled (not .Values.observability.pushgateway) -}}
  {{- fail "observability.pushgateway: is missing; the accuracy alerts look at what the job pushes there" -}}
{{- end -}}
{{- $names := list -}}{{- range .Values.stack.models -}}{{- $names = append $names .name -}}{{- end -}}
{{- range $part := list "evaluation" "loadTestGate" -}}
  {{- $section := get $.Values $part -}}
  {{- if and $section.enabled $section.model (not (has $section.model $names)) -}}
    {{- fail (printf "%s.model: the stack has no model %q; it has %s" $part $section.model (join ", " $names)) -}}
  {{- end -}}
{{- end -}}
{{- if and .Values.loadTestGate.enabled (not .Values.loadTestGate.reports.enabled) -}}
  {{- fail "loadTestGate.reports.enabled: the load test before an upgrade has to outlive its pod; enable the volume" -}}
{{- end -}}
{{- if .Values.stack.identify -}}
  {{- range $field, $secret := dict "clients.keySecret" .Values.clients.keySecret -}}
    {{- if and (or $.Values.evaluation.enabled $.Values.loadTestGate.enabled) (not $secret.name) -}}
      {{- fail (printf "%s.name: the stack asks for keys; name the Secret with a key for the chart's own clients" $field) -}}
    {{- end -}}
  {{- end -}}
  {{- if and .Values.observability.podMonitor.enabled (not .Values.stack.identify.open_metrics) (not .Values.observability.podMonitor.keySecret.name) -}}
    {{- fail "observability.podMonitor.keySecret.name: the stack asks for keys; name the Secret with a key of role auditor, or set stack.identify.open_metrics" -}}
  {{- end -}}
{{- end -}}
{{- end }}

{{/* A file or a process's memory is one pod's own: what counts over all replicas is in Valkey. */}}
{{- define "fovea.validateStores" -}}
{{- $valkey := "^(valkey|valkeys|redis|rediss)://" -}}
{{- with .Values.stack.identify -}}
  {{- if not (regexMatch $valkey (.keys | default "keys.db")) -}}
    {{- fail (printf "stack.identify.keys: %q is a file, and each pod has its own; write valkey://HOST:PORT/DB (`valkey.enabled` runs one)" (.keys | default "keys.db")) -}}
  {{- end -}}
{{- end -}}
{{- $replicas := 0 -}}
{{- range .Values.stack.models -}}
  {{- $replicas = add $replicas (include "fovea.mostReplicas" (dict "root" $ "name" .name "replicas" (.replicas | default 1))) -}}
{{- end -}}
{{- if kindIs "map" .Values.stack.admit -}}{{- $admit := .Values.stack.admit -}}
  {{- if and (gt (int $replicas) 1) (not (regexMatch $valkey ($admit.store | default "memory"))) -}}
    {{- fail (printf "stack.admit.store: %q is one replica's own, and the stack has %d; write valkey://HOST:PORT/DB (`valkey.enabled` runs one)" ($admit.store | default "memory") (int $replicas)) -}}
  {{- end -}}
{{- end -}}
{{- if kindIs "map" .Values.stack.recall -}}
  {{- $store := .Values.stack.recall.store | default "memory" -}}
  {{- if not (or (eq $store "memory") (regexMatch $valkey $store)) -}}
    {{- fail (printf "stack.recall.store: %q is a file, and each pod has its own; write memory or valkey://HOST:PORT/DB" $store) -}}
  {{- end -}}
{{- end -}}
{{- $files := dict -}}
{{- if kindIs "map" .Values.stack.batches -}}{{- $_ := set $files "stack.batches.folder" (.Values.stack.batches.folder | default "batches") -}}{{- end -}}
{{- with .Values.stack.money -}}{{- with .journal -}}{{- $_ := set $files "stack.money.journal" . -}}{{- end -}}{{- end -}}
{{- range $field, $path := $files -}}
  {{- if not (and $.Values.dataVolume.enabled (hasPrefix "/data/" $path)) -}}
    {{- fail (printf "%s: %q would be lost with its pod, or cannot be written at all; enable dataVolume and name a path in /data/" $field $path) -}}
  {{- end -}}
{{- end -}}
{{- if and .Values.valkey.enabled (not .Values.valkey.password.name) -}}
  {{- fail "valkey.password.name: is missing; name the Secret with its password" -}}
{{- end -}}
{{- end }}

{{/* With a cluster at hand: every Secret that is named is there. */}}
{{- define "fovea.validateSecrets" -}}
{{- $named := dict -}}
{{- with .Values -}}
  {{- $_ := set $named "gcsFaultTolerance.password.name" (ternary .gcsFaultTolerance.password.name "" .gcsFaultTolerance.enabled) -}}
  {{- $_ := set $named "valkey.password.name" (ternary .valkey.password.name "" .valkey.enabled) -}}
  {{- $_ := set $named "modelCache.download.tokenSecret.name" (ternary .modelCache.download.tokenSecret.name "" .modelCache.download.enabled) -}}
  {{- $_ := set $named "modelCache.download.credentials" (ternary .modelCache.download.credentials "" .modelCache.download.enabled) -}}
  {{- $_ := set $named "clients.keySecret.name" .clients.keySecret.name -}}
  {{- $_ := set $named "observability.podMonitor.keySecret.name" (ternary .observability.podMonitor.keySecret.name "" .observability.podMonitor.enabled) -}}
  {{- $_ := set $named "ingress.tlsSecret" (ternary .ingress.tlsSecret "" .ingress.enabled) -}}
  {{- range $i, $one := .image.pullSecrets -}}{{- $_ := set $named (printf "image.pullSecrets[%d]" $i) $one -}}{{- end -}}
  {{- range $i, $one := .secretEnv -}}{{- $_ := set $named (printf "secretEnv[%d].secret" $i) $one.secret -}}{{- end -}}
  {{- range $i, $one := .secretMounts -}}{{- $_ := set $named (printf "secretMounts[%d].secret" $i) $one.secret -}}{{- end -}}
{{- end -}}
{{- if and .Values.preflight (lookup "v1" "Namespace" "" .Release.Namespace) -}}
  {{- range $field, $name := $named -}}
    {{- if and $name (not (lookup "v1" "Secret" $.Release.Namespace $name)) -}}
      {{- fail (printf "%s: there is no Secret %q in namespace %s; make it first, or set preflight: false if something makes it later" $field $name $.Release.Namespace) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- end }}
