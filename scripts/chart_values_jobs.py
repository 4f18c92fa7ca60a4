"""Values of the chart about jobs and about replicas that follow the traffic; scripts/chart_values.py has the rest."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from scripts.chart_values_pods import Closed, Placed, Resources, Text, Volume

JOB_NAME = r"^[a-z]([a-z0-9-]{0,14}[a-z0-9])?$"  # KubeRay takes 47 characters for the whole name


class Autoscaled(Closed):
    """A model, or the front, whose replicas follow the requests inside them (serving/autoscale.py)."""

    model: Text = Field(description="Model of the stack, or `front`.")
    minReplicas: int = Field(
        1, ge=0, le=256, description="Fewest. 0: the first request after a pause waits until a replica has loaded."
    )
    maxReplicas: int = Field(ge=1, le=256, description="Most.")
    ongoingRequests: float = Field(
        8, gt=0, description="Requests inside one replica, waiting and running, that it is meant to hold."
    )
    upSeconds: float = Field(30, ge=0, description="More replicas after so long with more requests.")
    downSeconds: float = Field(300, ge=0, description="Fewer replicas after so long with fewer requests.")
    zeroSeconds: float = Field(900, ge=0, description="None at all after so long without a request.")


class JobCommon(Closed):
    """What both kinds of jobs have."""

    resources: Resources = Field(
        default_factory=lambda: Resources(
            requests={"cpu": "500m", "memory": "1Gi"}, limits={"cpu": "2", "memory": "2Gi"}
        ),
        description="Requests and limits.",
    )


class Evaluation(JobCommon):
    """A golden set, asked on a schedule; its accuracy goes to the Pushgateway, where the accuracy alerts look."""

    enabled: bool = Field(False, description="Make the CronJob, and its alerts.")
    schedule: Text = Field("17 3 * * *", description="Cron schedule, UTC.")
    model: str = Field("", description="Model to ask; the first of the stack if empty.")
    golden: Text = Field("easy-vqa", description="Golden set: a built-in one, or a path in a mounted volume.")
    limit: int = Field(500, ge=20, description="Items to ask, drawn by a fixed seed; calibration needs 150.")
    maxTokens: int = Field(16, ge=1, description="Longest answer, tokens.")
    reports: Volume = Field(
        default_factory=lambda: Volume(size="1Gi", accessMode="ReadWriteOnce"), description="Where reports stay."
    )


GATE: dict[str, dict[str, Any]] = {"latency_p95": {"max_increase": "25%"}, "accuracy": {"max_drop": 0.02}}


class LoadTestGate(JobCommon):
    """A load test before and after each upgrade; the upgrade fails when the gate does."""

    enabled: bool = Field(False, description="Make the hooks.")
    model: str = Field("", description="Model to load; the first of the stack if empty.")
    rate: float = Field(2, gt=0, description="Requests per second, open loop.")
    durationSeconds: int = Field(60, ge=5, le=3600, description="Length of each load test.")
    maxTokens: int = Field(16, ge=1, description="Longest answer, tokens.")
    workload: Text = Field("easy-vqa", description="Workload of `fovea loadtest run`.")
    waitSeconds: int = Field(1800, ge=10, description="How long the upgrade itself may take.")
    limits: dict[str, dict[str, Any]] = Field(
        default_factory=GATE.copy,
        description="Limits of the gate (docs/loadtest.md).",
    )
    reports: Volume = Field(
        default_factory=lambda: Volume(size="1Gi", accessMode="ReadWriteOnce"), description="Where reports stay."
    )


class RayJobCommon(Placed):
    """What quantization and distillation have in common: one pod, which ends with the job."""

    name: str = Field(pattern=JOB_NAME, description="Name of the job; its results are in /data/KIND/NAME.")
    gpus: int = Field(0, ge=0, le=16, description="GPUs of the pod.")
    gpuResource: Text = Field("nvidia.com/gpu", description="Name of the Kubernetes resource.")
    gpuProducts: list[Text] = Field(
        default_factory=list, description="Values of the node label `nvidia.com/gpu.product` that will do."
    )
    args: list[Text] = Field(default_factory=list, description="More arguments of the command, one by one.")
    timeoutSeconds: int = Field(86400, ge=60, description="The job fails after so long.")
    keepSeconds: int = Field(86400, ge=0, description="The job's object stays so long after its end.")


class QuantizeJob(RayJobCommon):
    """`fovea quantize run`, in the image with the quantization environment."""

    model: Text = Field(description="The 16-bit checkpoint: embedded:NAME, or a folder in a mounted volume.")
    scheme: Literal["w4a16", "w8a8", "fp8", "nf4", "bnb-int8"] = Field("w4a16", description="Scheme.")
    golden: str = Field("", description="Golden set of the gate; without one nothing is compared.")
    register_: str = Field(
        "", alias="register", description="Register it under that name when it passes the gate; needs `registry`."
    )


class DistillJob(RayJobCommon):
    """`fovea distill run`: goes on where it stopped when it is run again."""

    recipe: dict[str, Any] = Field(description="The recipe (docs/distill.md); paths in it are those of the pod.")


class JobImage(Closed):
    """The image of quantization jobs (Containerfile.quantize)."""

    repository: str = Field("", description="Name, with its registry; `image.repository` if empty.")
    tag: str = Field("", description="Tag; that of `image` with `-quantize` if empty.")
    digest: str = Field("", pattern=r"^(sha256:[0-9a-f]{64})?$", description="Digest; wins over the tag.")


class Jobs(Closed):
    """RayJobs. An entry runs once: changed it is a new job; removed, its object goes and its results stay."""

    image: JobImage = Field(default_factory=JobImage, description="Image of quantization jobs.")
    quantize: list[QuantizeJob] = Field(default_factory=list, description="Quantization jobs; they need `dataVolume`.")
    distill: list[DistillJob] = Field(default_factory=list, description="Distillation jobs; they need `dataVolume`.")
