"""gRPC: the contracts, and the client of services elsewhere. Needs the extra `grpc`.

`grpc_task` is the client of services that do a task's work for it (`handlers/grpc_task.py` is built on it). `proto`
holds the contracts and what `make protos` generates from them. What others call here is a dialect
(`runner.dialects.video_grpc`).
"""
