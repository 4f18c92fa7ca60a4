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
