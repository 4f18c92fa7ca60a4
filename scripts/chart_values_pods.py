"""Values of the chart about pods, volumes and upgrades; scripts/chart_values.py has the rest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1)]
Labels = dict[str, str]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]


class Closed(BaseModel):
    """A part of the values: closed, so that a typo fails `helm install` with its name."""

    model_config = ConfigDict(extra="forbid")


class SecretKey(Closed):
    """One key of a Secret that exists already (by hand, by External Secrets, ...)."""

    name: str = Field("", description="Name of the Secret; empty: none.")
    key: str = Field("token", description="Key in it.")


class Image(Closed):
    """The image of every container of the stack."""

    repository: Text = Field("fovea", description="Name, with its registry.")
    tag: str = Field("", description="Tag; the chart's appVersion with `-cpu` or `-gpu` if empty.")
    digest: str = Field("", pattern=r"^(sha256:[0-9a-f]{64})?$", description="Digest; wins over the tag.")
    pullPolicy: Literal["Always", "IfNotPresent", "Never"] = Field("IfNotPresent", description="Pull policy.")
    pullSecrets: list[Text] = Field(default_factory=list, description="Secrets with registry logins.")


class Resources(Closed):
    """Requests and limits of a container."""

    requests: dict[str, Quantity] = Field(default_factory=dict, description="What is reserved.")
    limits: dict[str, Quantity] = Field(default_factory=dict, description="What it may not pass.")


class Toleration(Closed):
    """A Kubernetes toleration."""

    key: str | None = Field(None, description="Taint's key.")
    operator: Literal["Equal", "Exists"] | None = Field(None, description="How it is compared.")
    value: str | None = Field(None, description="Taint's value.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(None, description="Taint's effect.")
    tolerationSeconds: int | None = Field(None, ge=0, description="For how long, with NoExecute.")


class Placed(Closed):
    """Where pods run and what they get."""

    resources: Resources = Field(description="Requests and limits of the Ray container.")
    shmSize: Quantity = Field("1Gi", description="/dev/shm, where Ray keeps shared objects; counts as memory.")
    nodeSelector: Labels = Field(default_factory=dict, description="Labels that the node must have.")
    tolerations: list[Toleration] = Field(default_factory=list, description="Taints that are tolerated.")
    priorityClassName: str = Field("", description="Existing PriorityClass.")


class Head(Placed):
    """The head pod: Ray's control plane and Serve's controller; no model runs there."""

    resources: Resources = Field(
        default_factory=lambda: Resources(requests={"cpu": "1", "memory": "4Gi"}, limits={"cpu": "2", "memory": "4Gi"}),
        description="Requests and limits of the Ray container.",
    )


class WorkerGroup(Placed):
    """Alike pods that run the replicas of some models."""

    name: str = Field(pattern=r"^[a-z]([a-z0-9-]{0,30}[a-z0-9])?$", description="Name of the group.")
    models: list[Text] = Field(min_length=1, description="Models of the stack whose replicas run here.")
    replicas: int = Field(1, ge=0, le=1000, description="Pods.")
    minReplicas: int | None = Field(None, ge=0, le=1000, description="Fewest pods, with `nodeAutoscaling`.")
    maxReplicas: int | None = Field(None, ge=1, le=1000, description="Most pods, with `nodeAutoscaling`.")
    cpusForReplicas: int = Field(
        2, ge=1, le=1024, description="Ray CPUs of one pod: each replica takes one, and so does the front."
    )
    gpus: int = Field(0, ge=0, le=16, description="GPUs of one pod.")
    gpuType: str = Field(
        "", description="A GPU of `fovea models fit` (L4, A10G, H100, ...): models are checked against its memory."
    )
    gpuMemoryGiB: float = Field(0, ge=0, description="Memory of one GPU, for a type that is not known; GiB.")
    gpuResource: Text = Field("nvidia.com/gpu", description="Name of the Kubernetes resource.")
    gpuProducts: list[Text] = Field(
        default_factory=list,
        description="Values of the node label `nvidia.com/gpu.product` that will do; pods go only there.",
    )
    spread: bool = Field(True, description="Spread the pods over nodes.")


class NodeAutoscaling(Closed):
    """Ray's autoscaler: pods of a group follow what the replicas ask for."""

    enabled: bool = Field(False, description="Add and remove pods between minReplicas and maxReplicas of a group.")
    idleTimeoutSeconds: int = Field(300, ge=30, description="A pod without replicas goes after so long.")
    resources: Resources = Field(
        default_factory=lambda: Resources(
            requests={"cpu": "200m", "memory": "512Mi"}, limits={"cpu": "500m", "memory": "512Mi"}
        ),
        description="Requests and limits of the autoscaler's container.",
    )


class Proxy(Closed):
    """HAProxy, in every pod that has replicas and in the head."""

    maxConnections: int = Field(4096, ge=16, le=1_000_000, description="Connections at once, in each pod.")
    bufferBytes: int = Field(
        16384, ge=4096, le=64 * 2**20, description="One buffer; a connection has two. Headers must fit into one."
    )
    threads: int = Field(1, ge=1, le=64, description="Threads.")
    memoryShare: float = Field(
        0.25, gt=0, le=1, description="Most of a pod's memory that all buffers together may come to; more is refused."
    )


class Probes(Closed):
    """When a pod counts as started, ready and alive."""

    loadSeconds: int = Field(
        600, ge=30, le=7200, description="How long a pod may take to its first ready replica: download, load, warm-up."
    )
    periodSeconds: int = Field(5, ge=1, le=300, description="Between two probes.")
    failureThreshold: int = Field(3, ge=1, le=100, description="Failed probes until the pod is taken out.")


class Upgrade(Closed):
    """What a change that needs new pods does."""

    strategy: Literal["NewCluster", "NewClusterWithIncrementalUpgrade", "None"] = Field(
        "NewCluster",
        description="NewCluster: a second cluster beside the first, traffic switches when it is ready. "
        "NewClusterWithIncrementalUpgrade: the same in steps, through the Gateway API. None: keep the pods.",
    )
    gatewayClassName: str = Field("", description="GatewayClass, for the incremental upgrade.")
    stepSizePercent: int = Field(10, ge=1, le=100, description="Traffic that moves in one step, %.")
    intervalSeconds: int = Field(60, ge=1, description="Between two steps, seconds.")
    maxSurgePercent: int = Field(100, ge=1, le=100, description="Size of the new cluster beyond the old one's, %.")
    deletionDelaySeconds: int = Field(60, ge=0, description="The old cluster stays so long after the switch, seconds.")


class GcsFaultTolerance(Closed):
    """Ray's control plane in Redis or Valkey, so that replicas go on answering while the head is gone."""

    enabled: bool = Field(False, description="Keep Ray's state outside the head pod.")
    redisAddress: str = Field("", description="HOST:PORT of a Redis or Valkey without cluster mode.")
    password: SecretKey = Field(
        default_factory=lambda: SecretKey(key="password"), description="Its password, from a Secret."
    )


class Volume(Closed):
    """A volume that outlives the pods."""

    enabled: bool = Field(False, description="Use a PersistentVolumeClaim; otherwise it lives as long as its pod.")
    existingClaim: str = Field("", description="Name of a claim that is there; otherwise the chart makes one.")
    size: Quantity = Field("50Gi", description="Size.")
    storageClass: str = Field("", description="StorageClass; the cluster's default if empty.")
    accessMode: Literal["ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany"] = Field(
        "ReadWriteMany", description="ReadWriteMany when pods on several nodes use it."
    )


class ModelSource(Closed):
    """A checkpoint that is not on the hub."""

    from_: Text = Field(
        alias="from",
        description="`s3://BUCKET/FOLDER`, `gs://BUCKET/FOLDER` or `pvc://CLAIM/FOLDER`. A bucket elsewhere: "
        "`s3://BUCKET/FOLDER?endpoint_override=HOST:PORT`.",
    )
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
        description="Folder in the cache; the stack names it as `source: /models/NAME`.",
    )


class Download(Closed):
    """The job that puts models into the model cache before a replica starts."""

    enabled: bool = Field(
        False, description="Download `sources`, and what the stack names by hub id; pods wait for it."
    )
    sources: list[ModelSource] = Field(default_factory=list, description="Checkpoints from buckets and other claims.")
    credentials: str = Field(
        "",
        description="Secret whose keys become the job's environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
        "AWS_REGION, ...; empty where the ServiceAccount has the right.",
    )
    tokenSecret: SecretKey = Field(default_factory=SecretKey, description="Hub token, from a Secret.")
    endpoint: str = Field("", pattern=r"^(https?://.+)?$", description="Address of a hub mirror.")
    resources: Resources = Field(
        default_factory=lambda: Resources(
            requests={"cpu": "500m", "memory": "1Gi"}, limits={"cpu": "2", "memory": "2Gi"}
        ),
        description="Requests and limits.",
    )


class ModelCache(Volume):
    """Where hub models are (HF_HOME)."""

    download: Download = Field(default_factory=Download, description="Download job.")


# the version that the tests run against; its multi-platform digest, as public projects pin it
VALKEY = "docker.io/valkey/valkey:9.1.2@sha256:418652cfb58ef879d4978c33553735d7147016032d5aefaa14c828e611eb9dfd"


class Valkey(Closed):
    """A Valkey of the release's own, for keys, tenants' counters and Ray's state: one pod, saved to a volume."""

    enabled: bool = Field(False, description="Run one, at RELEASE-fovea-valkey:6379; otherwise name an existing one.")
    image: Text = Field(VALKEY, description="Its image, by digest.")
    password: SecretKey = Field(
        default_factory=lambda: SecretKey(key="password"), description="Its password, from a Secret; required."
    )
    size: Quantity = Field("2Gi", description="Size of its volume.")
    storageClass: str = Field("", description="StorageClass; the cluster's default if empty.")
    resources: Resources = Field(
        default_factory=lambda: Resources(
            requests={"cpu": "100m", "memory": "256Mi"}, limits={"cpu": "1", "memory": "512Mi"}
        ),
        description="Requests and limits.",
    )


class SecretEnv(Closed):
    """An environment variable of every Ray container, from a Secret."""

    env: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="Name of the variable.")
    secret: Text = Field(description="Name of the Secret.")
    key: Text = Field(description="Key in it.")


class SecretMount(Closed):
    """A Secret as files in every Ray container."""

    secret: Text = Field(description="Name of the Secret.")
    path: str = Field(pattern=r"^/[A-Za-z0-9._/-]+$", description="Folder.")
