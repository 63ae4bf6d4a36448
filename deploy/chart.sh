#!/usr/bin/env bash
# Checks in what the chart renders what helm lint does not see.
#
#   deploy/chart.sh HELM
set -euo pipefail
shopt -s inherit_errexit # what cannot be rendered has nothing wrong in it
shopt -s lastpipe        # what a loop at the end of a pipe finds is known after it
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly helm=$1

render() { "$helm" template "$@" --kube-version 1.30 charts/weir; }
wrong() {
  echo "error: charts/weir: $1" >&2
  failed=1
}
failed=0

# A budget without the policy keeps a pod that is not ready on its node.
manifests=$(render weir)
budgets=$(grep --count '^kind: PodDisruptionBudget' <<<"$manifests")
if [[ $(grep --count '^  unhealthyPodEvictionPolicy: AlwaysAllow' <<<"$manifests") != "$budgets" ]]; then
  wrong "a PodDisruptionBudget does not let pods go that are not ready"
fi

# The alert about a process that runs only where Sources of kind kubernetes do.
alerts() { render weir --set prometheusRule.enabled=true --set sources.enabled="$1" | grep --count '^    - alert: WeirSourcesAbsent' || true; }
if [[ $(alerts true)$(alerts false) != 10 ]]; then
  wrong "the alert WeirSourcesAbsent is not there exactly if sources.enabled is true"
fi

# Without quotes YAML reads some names as numbers and booleans, which the API server rejects. The values in ci/ have such names.
strange() { render weir --namespace 2024 --values charts/weir/ci/everything-values.yaml "$@"; }
manifests=$(
  strange
  strange --set router.persistence.enabled=true --set-string router.persistence.storageClass=2024
  strange --values charts/weir/ci/jetstream-values.yaml --set router.updateStrategy=null
)
if grep --extended-regexp '([-:,] +|[[{])(2024|on) *([],}#]|$)' <<<"$manifests"; then
  wrong "these names lack quotes"
fi

# A label that is there twice: helm takes the last one, others reject the file. Those of one object stand below each other.
twice() {
  awk '
    { match($0, /^ */); if (RLENGTH != indent) { split("", seen); indent = RLENGTH } }
    $1 ~ /^[a-z].*:$/ && seen[$1]++'
}
labels=$(strange | twice)
if [[ -n "$labels" ]]; then
  wrong "these labels or annotations are there twice:"$'\n'"$labels"
fi

# The longest name that helm takes for a release, and as long a one for the chart. A StatefulSet's is followed by a dash and up to ten
# digits in a label of its pods.
longest=$(printf 'r%.0s' {1..53})
too_long() {
  awk '
    BEGIN { longest["StatefulSet"] = 52; longest["Service"] = 63 }
    /^kind: / { kind = $2 }
    /^  name: / { gsub(/"/, "", $2); if (kind in longest && length($2) > longest[kind]) print kind, $2 }
    /^ +(app\.kubernetes\.io|helm\.sh)\/[a-z]+: / { gsub(/"/, "", $2); if (length($2) > 63) print "label", $1, $2 }'
}
names=$(
  render "$longest" --namespace "$longest" | too_long
  render "$longest" --set nameOverride="$(printf 'n%.0s' {1..63})" | too_long
)
if [[ -n "$names" ]]; then
  wrong "these names are too long:"$'\n'"$names"
fi

# What belongs to no namespace is named by the release's namespace and name, so that two releases do not share it.
roles() { render "$@" --set crds.install=false | grep --after-context 2 '^kind: ClusterRole' | grep '^  name: ' | sort -u; }
shared=$(comm -12 <(roles a-weir --namespace team) <(roles weir --namespace team-a))
if [[ -n "$shared" ]]; then
  wrong "two releases have one name for these ClusterRoles:"$'\n'"$shared"
fi

# Prints an object, without line breaks and indentation.
#
#   object KIND/NAME [flag of helm template]...
object() {
  render weir --namespace weir-system "${@:2}" | awk -v object="$1" '
    function end() { if (kind "/" name == object) print text; kind = name = text = "" }
    /^---/ { end(); next }
    /^kind: / { kind = $2 }
    /^  name: / && name == "" { name = $2; gsub(/["\047]/, "", name) }
    { sub(/^ +/, ""); text = text " " $0 }
    END { end() }'
}

# What values become: an object, the values that are set, and a part of the object. "!" comes before what is not in it.
sed 's/ *| */|/g' <<'TABLE' |
ServiceAccount/weir-router | commonAnnotations={"a":"common","b":"common"} router.serviceAccount.annotations={"a":"own"} | annotations: a: own b: common
Deployment/weir-controller | commonAnnotations={"a":"common"}              | template: metadata: labels: app.kubernetes.io/component: controller app.kubernetes.io/instance: weir app.kubernetes.io/name: weir annotations: kubectl.kubernetes.io/default-container: controller spec:
CustomResourceDefinition/sinks.weir.dev | commonAnnotations={"a":"common"} commonLabels={"b":"common"} | metadata: annotations: a: common helm.sh/resource-policy: keep labels: b: common name: sinks.weir.dev
Service/weir               | commonAnnotations={"a":"common"}              | ! resource-policy
ConfigMap/weir             | extraObjects=[{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"{{.Release.Name}}"}}] | kind: ConfigMap metadata: name: 'weir'
StatefulSet/weir-router    | router.extraEnvFrom=[{"secretRef":{"name":"otel"}}] | envFrom: - secretRef: name: otel
StatefulSet/weir-router    | router.extraContainers=[{"name":"sidecar"}]   | readOnly: true} - name: sidecar volumes:
Deployment/weir-controller | controller.extraContainers=[{"name":"sidecar"}] | containerPort: 9090} - name: sidecar
StatefulSet/weir-router    | router.startupProbe.failureThreshold=1200     | startupProbe: httpGet: {path: /healthz, port: admin} failureThreshold: 1200 periodSeconds: 1
Deployment/weir-controller | controller.readinessProbe.periodSeconds=5     | readinessProbe: httpGet: {path: /readyz, port: admin} periodSeconds: 5 timeoutSeconds: 5
Deployment/weir-controller | controller.updateStrategy.type="Recreate"     | strategy: type: Recreate
StatefulSet/weir-router    | router.updateStrategy={"rollingUpdate":{"partition":2}} | updateStrategy: rollingUpdate: partition: 2
ClusterRole/weir-system.weir-addressables |                                  | aggregationRule: clusterRoleSelectors: - matchLabels: weir.dev/aggregate-to-controller-addressables: "true"
ClusterRole/weir-system.weir-addressables |                                  | ! rules:
ClusterRoleBinding/weir-system.weir-addressables |                           | name: "weir-system.weir-addressables"} subjects: [{"kind":"ServiceAccount","name":"weir-controller","namespace":"weir-system"}]
RoleBinding/weir-system.weir-addressables | watchNamespaces=["shop"]         | namespace: "shop"
Deployment/weir-controller |                                               | ! --shared-namespaces
Deployment/weir-controller |                                               | ! --allow-external-name-services
Deployment/weir-controller | externalNameServices=true sharedNamespaces=["*","a"] | - --allow-external-name-services - "--shared-namespaces=*,a"
Service/weir               | router.service.type="LoadBalancer" router.service.loadBalancerClass="example.com/lb" | type: LoadBalancer loadBalancerClass: "example.com/lb"
Service/weir               | router.service.type="NodePort" router.service.externalTrafficPolicy="Local" | type: NodePort externalTrafficPolicy: Local
Deployment/weir-controller |                                               | topologySpreadConstraints: - labelSelector: matchLabels: app.kubernetes.io/component: controller app.kubernetes.io/instance: weir app.kubernetes.io/name: weir matchLabelKeys: - pod-template-hash maxSkew: 1 topologyKey: kubernetes.io/hostname whenUnsatisfiable: ScheduleAnyway
Deployment/weir-controller | controller.topologySpreadConstraints=[]       | ! topologySpreadConstraints
StatefulSet/weir-router    | router.topologySpreadConstraints=[{"topologyKey":"rack","labelSelector":{"matchLabels":{"a":"b"}}}] | topologySpreadConstraints: - labelSelector: matchLabels: a: b topologyKey: rack
ServiceMonitor/weir-router | serviceMonitor.enabled=true                   | endpoints: - port: admin path: /metrics interval: "30s" honorLabels: true
PodMonitor/weir-controller | podMonitor={"enabled":true,"scrapeTimeout":"5s","relabelings":[{"action":"a"}],"metricRelabelings":[{"action":"b"}]} | scrapeTimeout: "5s" honorLabels: true relabelings: - action: a metricRelabelings: - action: b
NetworkPolicy/weir-router  |                                               | policyTypes: [Ingress] ingress: - ports: [{port: events}]
NetworkPolicy/weir-router  |                                               | ! egress
NetworkPolicy/weir-controller | networkPolicy.egress.enabled=true          | policyTypes: [Ingress, Egress]
NetworkPolicy/weir-controller | networkPolicy.egress.enabled=true          | egress: - ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}] - ports: - port: 443 - port: 6443
NetworkPolicy/weir-router  | networkPolicy.egress={"enabled":true,"router":[{"to":[{"podSelector":{}}]}]} | - ports: [{port: 8090}] to: - podSelector: matchLabels: app.kubernetes.io/name: "weir" app.kubernetes.io/instance: "weir" app.kubernetes.io/component: controller - to: - podSelector: {}
Ingress/weir               | ingress={"enabled":true,"className":"nginx","hosts":[{"host":"a.example.com"}]} | ingressClassName: "nginx" rules: - host: "a.example.com" http: paths: - path: "/" pathType: Prefix backend: {service: {name: "weir", port: {name: http}}}
Ingress/weir               | ingress={"enabled":true,"hosts":[{"host":"a","paths":[{"path":"/shop","pathType":"Exact"}]}],"tls":[{"secretName":"b"}]} | tls: - secretName: b rules: - host: "a" http: paths: - path: "/shop" pathType: Exact
HTTPRoute/weir             | httpRoute={"enabled":true,"parentRefs":[{"name":"a"}],"hostnames":["b"]} router.service.port=8080 | parentRefs: - name: a hostnames: - b rules: - matches: - path: type: PathPrefix value: / backendRefs: [{name: "weir", port: 8080}]
Service/weir               |                                               | ports: - {name: http, port: 80, targetPort: events, appProtocol: http}
Service/weir               | router.tls={"enabled":true,"secretName":"a"}  | ports: - {name: http, port: 80, targetPort: events, appProtocol: http} - {name: https, port: 443, targetPort: events-tls, appProtocol: https}
Service/weir               | router.tls={"enabled":true,"secretName":"a","plainHttp":false,"port":80} | ports: - {name: https, port: 80, targetPort: events-tls, appProtocol: https}
StatefulSet/weir-router    |                                               | ! tls
StatefulSet/weir-router    | router.tls={"enabled":true,"secretName":"a"}  | - --listen-tls=0.0.0.0:8443 - --tls-certificate=/var/run/weir/tls/tls.crt - --tls-key=/var/run/weir/tls/tls.key - --max-event-size
StatefulSet/weir-router    | router.tls={"enabled":true,"secretName":"a"}  | ports: - {name: events, containerPort: 8080} - {name: events-tls, containerPort: 8443} - {name: admin, containerPort: 9090}
StatefulSet/weir-router    | router.tls={"enabled":true,"secretName":"a"}  | - {name: tls, mountPath: /var/run/weir/tls, readOnly: true}
StatefulSet/weir-router    | router.tls={"enabled":true,"secretName":"a"}  | secret: {secretName: "a", items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]}
StatefulSet/weir-router    | router.tls={"enabled":true,"secretName":"a"}  | ! client-ca
StatefulSet/weir-router    | router.tls={"enabled":true,"secretName":"a","clientCaSecret":{"name":"b"}} | - --tls-key=/var/run/weir/tls/tls.key - --listen-tls-client-ca=/var/run/weir/client-ca/ca.crt - --max-event-size
StatefulSet/weir-router    | router.tls={"enabled":true,"secretName":"a","clientCaSecret":{"name":"b"}} | - name: client-ca secret: {secretName: "b", items: [{key: "ca.crt", path: ca.crt}]}
StatefulSet/weir-router    | router.tls={"enabled":true,"secretName":"a","plainHttp":false} | - --tls-only - --max-event-size
StatefulSet/weir-router    | router.tls={"enabled":true,"secretName":"a","plainHttp":false} | ports: - {name: events-tls, containerPort: 8443} - {name: admin, containerPort: 9090}
Deployment/weir-router     | log.engine="jetstream" log.jetstream.urls=["nats://a"] router.tls={"enabled":true,"secretName":"a"} | - name: tls # a directory, not single files: only that is kept up to date secret: {secretName: "a",
NetworkPolicy/weir-router  | router.tls={"enabled":true,"secretName":"a"}  | ingress: - ports: [{port: events}, {port: events-tls}]
NetworkPolicy/weir-router  | router.tls={"enabled":true,"secretName":"a","plainHttp":false} | ingress: - ports: [{port: events-tls}]
Ingress/weir               | router.tls={"enabled":true,"secretName":"a","plainHttp":false} ingress={"enabled":true,"hosts":[{"host":"a"}]} | port: {name: https}
HTTPRoute/weir             | router.tls={"enabled":true,"secretName":"a","plainHttp":false} httpRoute={"enabled":true,"parentRefs":[{"name":"a"}]} | backendRefs: [{name: "weir", port: 443}]
Deployment/weir-controller |                                               | --broker-base-url=http://weir.weir-system.svc - --lease
Deployment/weir-controller | router.tls={"enabled":true,"secretName":"a"}  | --broker-base-url=https://weir.weir-system.svc - --broker-ca=/var/run/weir/broker/ca.crt
Deployment/weir-controller | router.tls={"enabled":true,"secretName":"a","port":8443} | --broker-base-url=https://weir.weir-system.svc:8443 - --broker-ca
Deployment/weir-controller | router.tls={"enabled":true,"secretName":"a"}  | volumeMounts: - {name: broker-ca, mountPath: /var/run/weir/broker, readOnly: true} volumes: - name: broker-ca secret: {secretName: "a", items: [{key: ca.crt, path: ca.crt}], optional: true}
Deployment/weir-controller | router.tls={"enabled":true,"secretName":"a"}  | ! tls.key
Pod/weir-test              | router.tls={"enabled":true,"secretName":"a"}  | args: [send, "https://weir.weir-system.svc/weir-system/default", --type=dev.weir.helm-test] env: - {name: K_SINK, value: "https://weir.weir-system.svc/weir-system/default"} - {name: K_CA_CERTS, valueFrom: {secretKeyRef: {name: "a", key: ca.crt, optional: true}}}
StatefulSet/weir-router    |                                               | ! --log=
Deployment/weir-router     | log.engine="jetstream" log.jetstream.urls=["nats://a:4222","tls://b"] | - --log=jetstream - "--nats=nats://a:4222,tls://b" - --nats-replicas=3 - --nats-stream-size=2GiB - --nats-dead-letter-stream-size=1280MiB - --nats-partitions=1 - --keep-deleted-triggers
Deployment/weir-router     | log.engine="jetstream" log.jetstream.urls=["nats://a"] | replicas: 1 strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 1, maxUnavailable: 0}} #
Deployment/weir-router     | log.engine="jetstream" log.jetstream.urls=["nats://a"] router.replicas=24 | replicas: 24 strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 1, maxUnavailable: 0}} #
Deployment/weir-router     | log.engine="jetstream" log.jetstream.urls=["nats://a"] router.updateStrategy={"type":"Recreate"} | strategy: type: Recreate selector:
Deployment/weir-router     | log.engine="jetstream" log.jetstream.urls=["nats://a"] router.updateStrategy={"rollingUpdate":{"maxUnavailable":1}} | strategy: rollingUpdate: maxUnavailable: 1 selector:
Deployment/weir-router     | log.engine="jetstream" log.jetstream.urls=["nats://a"] | terminationGracePeriodSeconds: 60
PodDisruptionBudget/weir-router | log.engine="jetstream" log.jetstream.urls=["nats://a"] router.replicas=3 | maxUnavailable: 1 unhealthyPodEvictionPolicy: AlwaysAllow
Deployment/weir-router     | log.engine="jetstream" log.jetstream.urls=["nats://a"] router.autoscaling.enabled=true | ! replicas:
Deployment/weir-router     | log.engine="jetstream" log.jetstream.urls=["nats://a"] router.replicas=null | ! replicas:
Deployment/weir-router     | log.engine="jetstream" log.jetstream.urls=["nats://a"] router.replicas=0 | spec: replicas: 0 strategy:
HorizontalPodAutoscaler/weir-router | log.engine="jetstream" log.jetstream.urls=["nats://a"] router.autoscaling.enabled=true | spec: scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: "weir-router"} minReplicas: 2 maxReplicas: 6 metrics: - {type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 80}}}
HorizontalPodAutoscaler/weir-router | log.engine="jetstream" log.jetstream.urls=["nats://a"] router.autoscaling.enabled=true | ! behavior
HorizontalPodAutoscaler/weir-router | log.engine="jetstream" log.jetstream.urls=["nats://a"] router.autoscaling={"enabled":true,"maxReplicas":24,"metrics":[{"type":"Pods"}],"behavior":{"scaleDown":{"stabilizationWindowSeconds":600}}} | maxReplicas: 24 metrics: - {type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 80}}} - type: Pods behavior: scaleDown: stabilizationWindowSeconds: 600
HorizontalPodAutoscaler/weir-router | log.engine="jetstream" log.jetstream.urls=["nats://a"] router.autoscaling={"enabled":true,"targetCPUUtilizationPercentage":null,"metrics":[{"type":"Pods"}]} | metrics: - type: Pods
Deployment/weir-router     | log.engine="jetstream" log.jetstream.urls=["nats://a"] | - {name: data, emptyDir: {sizeLimit: 1Gi}}
Deployment/weir-router     | log.engine="jetstream" log.jetstream.urls=["nats://a"] | ! nats/
Deployment/weir-router     | log.engine="jetstream" log.jetstream={"urls":["nats://a"],"credentialsSecret":{"name":"b"}} | - --nats-credentials=/var/run/weir/nats/credentials - --keep-deleted-triggers
Deployment/weir-router     | log.engine="jetstream" log.jetstream={"urls":["nats://a"],"credentialsSecret":{"name":"b"}} | - name: nats projected: sources: - secret: {name: "b", items: [{key: "nats.creds", path: credentials}]} - {name: data,
Deployment/weir-router     | log.engine="jetstream" log.jetstream={"urls":["tls://a"],"caConfigMap":{"name":"b"},"certificateSecret":{"name":"c"}} | - --nats-ca=/var/run/weir/nats/ca.crt - --nats-certificate=/var/run/weir/nats/tls.crt - --nats-key=/var/run/weir/nats/tls.key
Deployment/weir-router     | log.engine="jetstream" log.jetstream={"urls":["tls://a"],"caConfigMap":{"name":"b"},"certificateSecret":{"name":"c"}} | sources: - configMap: {name: "b", items: [{key: "ca.crt", path: ca.crt}]} - secret: {name: "c", items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]}
NetworkPolicy/weir-router  | log.engine="jetstream" log.jetstream.urls=["nats://a","tls://b:4443","nats://c:4222"] networkPolicy.egress.enabled=true | - ports: [{port: 4222}, {port: 4443}] # NATS
NetworkPolicy/weir-router  | networkPolicy.egress.enabled=true             | ! NATS
Service/weir               |                                               | ! admin
TABLE
  while IFS='|' read -r object values expected; do
    read -ra sets <<<"$values"
    text=$(object "$object" "${sets[@]/#/--set-json=}")
    case $expected in
      '! '*) [[ -n "$text" && "$text" != *"${expected#! }"* ]] ;;
      *) [[ "$text" == *"$expected"* ]] ;;
    esac || wrong "$object with ${values:-its defaults} does not have: $expected"$'\n'"$text"
  done

# By default nothing is reached from outside the cluster, and nothing is ever but the port for events.
outside=$(render weir | grep --extended-regexp '^kind: (Ingress|HTTPRoute)$' || true)
if [[ -n "$outside" ]]; then
  wrong "this is there by default:"$'\n'"$outside"
fi
for kind in Ingress HTTPRoute; do
  text=$(object "$kind/on" --values charts/weir/ci/everything-values.yaml)
  if [[ -z "$text" || "$text" =~ admin|configuration|9090|8090 ]]; then
    wrong "the $kind leads to more than events:"$'\n'"$text"
  fi
done

# What is empty by default can be unset; a value that is needed is asked for, not rendered as nothing.
optional=(nameOverride watchNamespaces common{Labels,Annotations} image.tag imagePullSecrets sinkSecrets sinkServiceAccounts brokerQuota brokerQuotaDefaults brokerDeduplication{,Defaults}
  addressables sharedNamespaces externalNameServices
  tracing.endpoint extraObjects
  {controller,router}.{replicas,updateStrategy,extraArgs,extraEnvFrom,extraContainers,{startup,liveness,readiness}Probe}
  {controller,router}.{podLabels,podAnnotations,resources,affinity,topologySpreadConstraints}
  router.autoscaling router.persistence.storageClass router.service.{loadBalancerClass,externalTrafficPolicy} ingress httpRoute
  networkPolicy.{egress,metricsFrom} {service,pod}Monitor.{scrapeTimeout,relabelings,metricRelabelings} podSecurityContext)
nulls=("${optional[@]/#/--set=}")
if ! render weir "${nulls[@]/%/=null}" >/dev/null; then
  wrong "a value that need not be there cannot be unset"
fi
for needed in router router.logSize router.persistence controller.podDisruptionBudget.maxUnavailable; do
  if render weir --set "$needed=null" >/dev/null 2>&1; then
    wrong "$needed can be unset"
  fi
done
# A value that cannot hold is rejected, and the error says why.
sed 's/ *| */|/g' <<'TABLE' |
addressables.clusterRoleSelectors=[{}]       | /addressables/clusterRoleSelectors/0
router.service.loadBalancerClass="lb"        | loadBalancerClass needs router.service.type LoadBalancer
router.service.externalTrafficPolicy="Local" | externalTrafficPolicy needs router.service.type LoadBalancer or NodePort
router.tls.enabled=true                      | /router/tls/secretName
router.tls={"enabled":true,"secretName":"a","port":80} | router.tls.port must not be router.service.port
router.tls.clientCa="a"                      | clientCa
controller.updateStrategy.type="OnDelete"    | /controller/updateStrategy/type
router.autoscaling.enabled=true              | router.autoscaling needs log.engine jetstream
router.autoscaling.maxReplicas=25            | /router/autoscaling/maxReplicas
router.autoscaling.minReplicas=0             | /router/autoscaling/minReplicas
router.autoscaling={"enabled":true,"targetCPUUtilizationPercentage":null} | /router/autoscaling
router.autoscaling.targetMemory=1            | targetMemory
router.updateStrategy.rollingUpdate.maxSurge=1 | maxSurge
router.livenessProbe.httpGet={}              | httpGet
controller.readinessProbe.periodSeconds=0    | /controller/readinessProbe/periodSeconds
controller.extraContainers=[{"image":"a"}]   | /controller/extraContainers/0
extraObjects=[{"kind":"ConfigMap"}]          | /extraObjects/0
serviceMonitor.scrapeTimeout="10seconds"     | /serviceMonitor/scrapeTimeout
ingress.enabled=true                         | /ingress/hosts
ingress.hosts=[{"host":"https://a"}]         | /ingress/hosts/0/host
ingress.hosts=[{"paths":[{"path":"/"}]}]     | missing property 'host'
ingress.hosts=[{"host":"a","paths":[{"path":"shop"}]}] | /ingress/hosts/0/paths/0/path
httpRoute.enabled=true                       | /httpRoute/parentRefs
httpRoute.rules=[{"backendRefs":[]}]         | backendRefs
log.engine="jetstream"                       | /log/jetstream/urls
log={"engine":"jetstream","jetstream":{"urls":["nats://a:b@c"]}} | /log/jetstream/urls/0
log={"engine":"jetstream","jetstream":{"urls":["nats://a"],"replicas":2}} | /log/jetstream/replicas
log={"engine":"jetstream","jetstream":{"urls":["nats://a"],"partitions":25}} | /log/jetstream/partitions
log={"engine":"jetstream","jetstream":{"urls":["nats://a"],"streamSize":"1024MiB"}} | log.jetstream.streamSize must be larger than router.retentionSize
log={"engine":"jetstream","jetstream":{"urls":["nats://a"],"deadLetterStreamSize":"1G"}} | log.jetstream.deadLetterStreamSize must be larger than router.deadLetterSize
log={"engine":"jetstream","jetstream":{"urls":["nats://a"]}} router.whenFull="drop-oldest" | router.whenFull drop-oldest needs log.engine embedded
log={"engine":"jetstream","jetstream":{"urls":["nats://a"]}} router.updateStrategy={"rollingUpdate":{"partition":1}} | partition
log={"engine":"jetstream","jetstream":{"urls":["nats://a"]}} router.updateStrategy.type="OnDelete" | /router/updateStrategy/type
log={"engine":"jetstream","jetstream":{"urls":["nats://a"]}} router.autoscaling={"enabled":true,"minReplicas":7} | router.autoscaling.minReplicas must not be above router.autoscaling.maxReplicas
TABLE
  while IFS='|' read -r value expected; do
    read -ra sets <<<"$value"
    if said=$(render weir "${sets[@]/#/--set-json=}" 2>&1 >/dev/null); then
      wrong "$value is not rejected"
    elif [[ "$said" != *"$expected"* ]]; then
      wrong "the error for $value does not have: $expected"$'\n'"$said"
    fi
  done
# The condition of a chart that depends on this one is among this one's values.
render weir --set enabled=true >/dev/null || wrong "it cannot be a dependency with a condition"

exit "$failed"
