{{- define "kata.labels" -}}
app.kubernetes.io/name: kata
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "kata.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{/* Directories of the node whose files the installation changes, by engine. */}}
{{- define "kata.configuration" -}}
{{- get (dict
  "containerd" "/etc/containerd"
  "crio" "/etc/crio"
  "k3s" "/var/lib/rancher/k3s/agent/etc/containerd"
  "rke2" "/var/lib/rancher/rke2/agent/etc/containerd") .Values.engine -}}
{{- end -}}

{{/* A node has one of them, and systemctl fails for a unit that is not there. */}}
{{- define "kata.restart-either" -}}
for unit in {{ join " " . }}; do if systemctl cat "$unit" >/dev/null 2>&1; then systemctl try-restart "$unit"; fi; done
{{- end -}}

{{- define "kata.restart" -}}
{{- .Values.restart | default (get (dict
  "containerd" "systemctl restart containerd"
  "crio" "systemctl restart crio"
  "k3s" (include "kata.restart-either" (list "k3s" "k3s-agent"))
  "rke2" (include "kata.restart-either" (list "rke2-server" "rke2-agent"))) .Values.engine) -}}
{{- end -}}
