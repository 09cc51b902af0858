"""gRPC: what others call here, and what handlers call elsewhere. Needs the extra `grpc`.

`grpc_task` is the client of services that do a task's work for it (`handlers/grpc_task.py` is built on it). `proto`
holds the contracts and what `make protos` generates from them.
"""
