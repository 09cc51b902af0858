"""Have a service elsewhere do the work: `grpc_task.v1.TaskExecutorService`, whose client is `runner.rpc.grpc_task`."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from runner import Context, Fail, handler


class Options(BaseModel):
    """How the service is to do it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    timeout_ms: Annotated[
        int | None,
        Field(ge=1, le=30 * 86_400_000, description="how long it may take; without: as configured for the service"),
    ] = None
    enable_progress: Annotated[bool, Field(description="whether it is to say how far it is")] = True
    progress_interval_ms: Annotated[int, Field(ge=1, le=3_600_000, description="and how often")] = 1000


USUAL = Options()


@handler(
    timeout="30m",
    retries=3,
    backoff={"base": "15s", "factor": 2, "max": "10m", "jitter": 0.3},
    extra="grpc",
    requires=["grpc", "google.protobuf"],
)
def grpc_task(
    ctx: Context,
    service: Annotated[str, Field(min_length=1, max_length=200, description="its name in the configuration")],
    method: Annotated[str, Field(max_length=200, description="what it is to do")] = "",
    data: Annotated[dict[str, Any] | None, Field(description="with what")] = None,
    options: Options = USUAL,
) -> dict[str, object]:
    """Have a gRPC service do the work, and pass on its progress and its result."""
    from runner.errors import ConfigError
    from runner.rpc.grpc_task import Order, services_of

    if ctx.inputs:
        raise Fail(f"grpc_task sends data, not files; it got {len(ctx.inputs)}", code="wrong_inputs")
    seconds = None if options.timeout_ms is None else options.timeout_ms / 1000
    order = Order(service, method, data or {}, seconds, options.enable_progress, options.progress_interval_ms)
    try:
        with services_of(ctx.config).use(service) as found:
            return found.execute(ctx, order)
    except ConfigError as error:
        raise Fail(str(error), code="invalid_config") from error
