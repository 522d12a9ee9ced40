"""The wire: messages and gRPC stubs generated from `protos/skillcell/v1` by `protos/generate.sh`. Never edit them.

Import the modules, as `from skillcell.v1 import execution_pb2, execution_pb2_grpc`. Setting a field to a value that
breaks its rules raises nothing: `protovalidate.validate(message)` enforces what the protos declare.
"""
