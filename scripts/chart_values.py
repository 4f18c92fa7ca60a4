"""Every value of the chart `helm/fovea`, as closed pydantic models: the source of its schema and of its README.

The section `stack` is `serving.stack.Stack` itself, so the chart and `fovea serve` have one vocabulary.  `python -m
scripts.chart` writes helm/fovea/values.schema.json and helm/fovea/README.md from here; a test keeps them in step.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from scripts.chart_values_jobs import Autoscaled, Evaluation, Jobs, LoadTestGate
from scripts.chart_values_pods import (
    Closed,
    GcsFaultTolerance,
    Head,
    Image,
    Labels,
    ModelCache,
    NodeAutoscaling,
    Probes,
    Proxy,
    SecretEnv,
    SecretKey,
    SecretMount,
    Text,
    Upgrade,
    Valkey,
    Volume,
    WorkerGroup,
)
from serving.stack import Stack


class Ingress(Closed):
    """An Ingress to the stack."""

    enabled: bool = Field(False, description="Make an Ingress.")
    className: str = Field("", description="IngressClass.")
    host: str = Field("", description="Host name.")
    tlsSecret: str = Field("", description="Secret with the certificate; without one the route is plain HTTP.")
    controller: Literal["nginx", "other"] = Field(
        "nginx", description="nginx: body size, timeouts and unbuffered streams are set by annotations."
    )
    annotations: Labels = Field(default_factory=dict, description="More annotations; they win.")
    timeoutSeconds: int = Field(3600, ge=1, description="Longest answer, streams included.")


class ParentRef(Closed):
    """A Gateway."""

    name: Text = Field(description="Name of the Gateway.")
    namespace: str = Field("", description="Its namespace; the release's if empty.")
    sectionName: str = Field("", description="Listener.")


class Gateway(Closed):
    """An HTTPRoute to the stack (Gateway API)."""

    enabled: bool = Field(False, description="Make an HTTPRoute.")
    parents: list[ParentRef] = Field(default_factory=list, description="Gateways to attach to.")
    hostnames: list[Text] = Field(default_factory=list, description="Host names; all if empty.")
    timeoutSeconds: int = Field(3600, ge=1, description="Longest answer, streams included.")


class Peer(Closed):
    """Who is let through a NetworkPolicy."""

    namespaceSelector: dict[str, Any] | None = Field(None, description="LabelSelector of namespaces.")
    podSelector: dict[str, Any] | None = Field(None, description="LabelSelector of pods.")
    ipBlock: dict[str, Any] | None = Field(None, description="CIDR range.")


class Network(Closed):
    """NetworkPolicies: nothing in and nothing out but what is listed."""

    enabled: bool = Field(True, description="Make the NetworkPolicies.")
    clients: list[Peer] = Field(
        default_factory=lambda: [Peer(podSelector={})],
        description="Who may call the stack; by default the pods of the release's namespace.",
    )
    monitoring: list[Peer] = Field(default_factory=list, description="Who may scrape; Prometheus' namespace.")
    operatorNamespace: Text = Field("kuberay-operator", description="Namespace of the KubeRay operator.")
    egress: list[dict[str, Any]] = Field(
        default_factory=list, description="More NetworkPolicy egress rules: stores, vendors, image hosts."
    )


class ServiceAccount(Closed):
    """The pods' ServiceAccount; its token is mounted nowhere but where a container needs it."""

    create: bool = Field(True, description="Make one.")
    name: str = Field("", description="Its name; the release's if empty.")
    annotations: Labels = Field(default_factory=dict, description="Annotations.")


class Security(Closed):
    """Who the containers run as."""

    runAsUser: int = Field(10001, ge=1, description="User id; never root.")
    fsGroup: int = Field(10001, ge=1, description="Group that owns the volumes.")


class Disruption(Closed):
    """PodDisruptionBudgets: a drained node takes replicas away one after another."""

    enabled: bool = Field(True, description="Make one per worker group with several pods.")


class PodMonitor(Closed):
    """Prometheus scrapes the whole stack through the head pod."""

    enabled: bool = Field(False, description="Make a PodMonitor (Prometheus operator).")
    interval: str = Field("15s", pattern=r"^[1-9][0-9]*(s|m)$", description="Between two scrapes.")
    labels: Labels = Field(default_factory=dict, description="Labels that the Prometheus selects by.")
    keySecret: SecretKey = Field(
        default_factory=lambda: SecretKey(key="key"),
        description="API key of role auditor, when the stack asks for keys.",
    )


class Slo(Closed):
    """What the alerts hold the stack to."""

    availability: float = Field(0.995, ge=0.5, lt=1, description="Share of requests that are not answered with 5xx.")
    p95Seconds: float = Field(2, gt=0, description="P95 of request latency, seconds.")
    queuePerReplica: float = Field(8, gt=0, description="Waiting requests per replica that are too many.")
    kvUsage: float = Field(0.9, gt=0, le=1, description="Share of the KV cache that is too much for long.")
    accuracyDrop: float = Field(0.05, gt=0, lt=1, description="Drop of golden accuracy in a week, as a share.")
    latencyJump: float = Field(0.5, gt=0, description="Rise of P95 against the day before, as a share.")
    expiryDays: float = Field(14, gt=0, description="Days before the last key of a tenant, or the certificate, ends.")
    batchHours: float = Field(12, gt=0, description="Hours after which a batch that is not done is late.")
    spendJump: float = Field(1.0, gt=0, description="Rise of dollars per hour against a week ago, as a share.")


class Rules(Closed):
    """Alert and recording rules."""

    enabled: bool = Field(False, description="Make a PrometheusRule (Prometheus operator).")
    labels: Labels = Field(default_factory=dict, description="Labels that the Prometheus selects by.")
    runbooks: str = Field(
        "docs/runbooks", min_length=1, description="Address of the folder with the runbooks, for the alerts' links."
    )
    certificate: str = Field(
        "", description="cert-manager Certificate of the route, in the release's namespace; empty: no alert for it."
    )
    slo: Slo = Field(default_factory=Slo, description="Thresholds.")


class Dashboards(Closed):
    """Grafana dashboards as ConfigMaps."""

    enabled: bool = Field(False, description="Make the ConfigMaps.")
    labels: Labels = Field(
        default_factory=lambda: {"grafana_dashboard": "1"}, description="Labels that Grafana's sidecar selects by."
    )
    folder: str = Field("Fovea", description="Folder in Grafana.")


class Observability(Closed):
    """Metrics, alerts, dashboards."""

    podMonitor: PodMonitor = Field(default_factory=PodMonitor, description="Scraping.")
    rules: Rules = Field(default_factory=Rules, description="Rules.")
    dashboards: Dashboards = Field(default_factory=Dashboards, description="Dashboards.")
    pushgateway: str = Field(
        "",
        pattern=r"^(https?://.+)?$",
        description="Address of a Pushgateway: figures of the evaluation, and begin and end of every job, go there.",
    )


class Clients(Closed):
    """What the chart's own clients (helm test, jobs) send."""

    keySecret: SecretKey = Field(
        default_factory=lambda: SecretKey(key="key"),
        description="API key of role caller, when the stack asks for keys.",
    )


class Values(Closed):
    """All values."""

    global_: dict[str, Any] = Field(default_factory=dict, alias="global", description="Helm's own; not used.")
    nameOverride: str = Field("", pattern=r"^([a-z]([a-z0-9-]{0,30}[a-z0-9])?)?$", description="Instead of `fovea`.")
    fullnameOverride: str = Field(
        "", pattern=r"^([a-z]([a-z0-9-]{0,30}[a-z0-9])?)?$", description="Instead of RELEASE-fovea."
    )
    image: Image = Field(default_factory=Image, description="Image.")
    stack: Stack = Field(description="The stack file: what is served and how (docs/serving.md).")
    head: Head = Field(default_factory=Head, description="Head pod.")
    workerGroups: list[WorkerGroup] = Field(min_length=1, description="Pods that run the models.")
    frontReplicas: int = Field(
        2,
        ge=1,
        le=100,
        description="Replicas of the front (`/v1` of several models); each takes one Ray CPU of a group.",
    )
    autoscaling: list[Autoscaled] = Field(
        default_factory=list, description="Models, and `front`, whose number of replicas follows their requests."
    )
    nodeAutoscaling: NodeAutoscaling = Field(default_factory=NodeAutoscaling, description="Ray's autoscaler.")
    proxy: Proxy = Field(default_factory=Proxy, description="HAProxy.")
    probes: Probes = Field(default_factory=Probes, description="Probes.")
    preStopSeconds: int = Field(
        30,
        ge=0,
        le=3600,
        description="A pod that ends waits so long for its replicas to be replaced elsewhere, and answers meanwhile; "
        "then they finish what runs (`stack.drain_s`) and are offered nothing new.",
    )
    upgrade: Upgrade = Field(default_factory=Upgrade, description="Upgrades.")
    gcsFaultTolerance: GcsFaultTolerance = Field(
        default_factory=GcsFaultTolerance, description="Ray's state outside the head."
    )
    valkey: Valkey = Field(default_factory=Valkey, description="Valkey of the release's own.")
    offline: bool = Field(True, description="HF_HUB_OFFLINE: no pod but the download job asks the hub for anything.")
    modelCache: ModelCache = Field(default_factory=ModelCache, description="Model cache.")
    compileCache: Volume = Field(
        default_factory=lambda: Volume(size="10Gi"), description="vLLM's and torch's compiled kernels."
    )
    dataVolume: Volume = Field(
        default_factory=lambda: Volume(size="20Gi"),
        description="Folder /data of every Ray pod, for files of the stack: `batches.folder`, `money.journal`.",
    )
    registry: str = Field(
        "",
        description="Where `registry:NAME@live` is looked up (FOVEA_REGISTRY): a folder in a mounted volume, or the "
        "URL of a bucket.",
    )
    secretEnv: list[SecretEnv] = Field(
        default_factory=list,
        description="Variables from Secrets. `$(NAME)` in a string of `stack` becomes the variable's value.",
    )
    secretMounts: list[SecretMount] = Field(default_factory=list, description="Secrets as files.")
    ingress: Ingress = Field(default_factory=Ingress, description="Ingress.")
    gateway: Gateway = Field(default_factory=Gateway, description="HTTPRoute.")
    networkPolicy: Network = Field(default_factory=Network, description="NetworkPolicies.")
    serviceAccount: ServiceAccount = Field(default_factory=ServiceAccount, description="ServiceAccount.")
    security: Security = Field(default_factory=Security, description="Users and groups.")
    podDisruptionBudget: Disruption = Field(default_factory=Disruption, description="PodDisruptionBudgets.")
    preflight: bool = Field(
        True, description="With a cluster at hand: refuse Secrets that are not there and GPU products that no node has."
    )
    podAnnotations: Labels = Field(
        default_factory=dict, description="Annotations of every Ray pod; a change is a new cluster."
    )
    observability: Observability = Field(default_factory=Observability, description="Eyes.")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="Golden set on a schedule.")
    loadTestGate: LoadTestGate = Field(default_factory=LoadTestGate, description="Load test around upgrades.")
    jobs: Jobs = Field(default_factory=Jobs, description="Quantization and distillation.")
    clients: Clients = Field(default_factory=Clients, description="The chart's own clients.")
