{{- define "entrepot.labels" -}}
app.kubernetes.io/name: entrepot
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "entrepot.allLabels" -}}
{{ include "entrepot.labels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "entrepot.name" -}}
{{- if contains "entrepot" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-entrepot{{ end -}}
{{- end }}
