"""The RPCs about shared memory. Whoever may administer the server may call them."""

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference.access import Context, require_operator
from servery_inference.rpcs import Handlers
from servery_inference.shared_memory import RegionNotFoundError, Registration, SharedMemory
from servery_rpc.errors import UnsupportedError


class SharedMemoryServicer:
    """Keeps the regions that clients register.

    There is no shared GPU memory: what clients call at every start is answered as if none were
    registered, a registration is refused.

    Args:
        memory: The regions; None if the operator did not allow them.
    """

    def __init__(self, memory: SharedMemory | None) -> None:
        self._memory = memory

    def handlers(self) -> Handlers:
        """Return the methods by their names in the contract."""
        return {
            "SystemSharedMemoryStatus": self.SystemSharedMemoryStatus,
            "SystemSharedMemoryRegister": self.SystemSharedMemoryRegister,
            "SystemSharedMemoryUnregister": self.SystemSharedMemoryUnregister,
            "CudaSharedMemoryStatus": self.CudaSharedMemoryStatus,
            "CudaSharedMemoryRegister": self.CudaSharedMemoryRegister,
            "CudaSharedMemoryUnregister": self.CudaSharedMemoryUnregister,
        }

    async def SystemSharedMemoryStatus(
        self, request: pb.SystemSharedMemoryStatusRequest, context: Context
    ) -> pb.SystemSharedMemoryStatusResponse:
        """See grpc_service.proto."""
        require_operator(context)
        response = pb.SystemSharedMemoryStatusResponse()
        if self._memory is None and request.name:
            raise RegionNotFoundError(request.name)
        for region in self._memory.status(request.name) if self._memory else ():
            response.regions[region.name].CopyFrom(
                pb.SystemSharedMemoryStatusResponse.RegionStatus(
                    name=region.name,
                    key=region.key,
                    offset=region.offset,
                    byte_size=region.size_bytes,
                )
            )
        return response

    async def SystemSharedMemoryRegister(
        self, request: pb.SystemSharedMemoryRegisterRequest, context: Context
    ) -> pb.SystemSharedMemoryRegisterResponse:
        """See grpc_service.proto."""
        require_operator(context)
        if self._memory is None:
            raise UnsupportedError("shared memory, unless it is started with --shared-memory true,")
        self._memory.register(
            Registration(request.name, request.key, request.offset, request.byte_size)
        )
        return pb.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, context: Context
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        """See grpc_service.proto."""
        require_operator(context)
        if self._memory:
            self._memory.unregister(request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryStatus(
        self, request: pb.CudaSharedMemoryStatusRequest, context: Context
    ) -> pb.CudaSharedMemoryStatusResponse:
        """See grpc_service.proto."""
        require_operator(context)
        if request.name:
            raise RegionNotFoundError(request.name)
        return pb.CudaSharedMemoryStatusResponse()

    async def CudaSharedMemoryRegister(
        self, request: pb.CudaSharedMemoryRegisterRequest, context: Context
    ) -> pb.CudaSharedMemoryRegisterResponse:
        """See grpc_service.proto."""
        require_operator(context)
        raise UnsupportedError("shared memory of a GPU")

    async def CudaSharedMemoryUnregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest, context: Context
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        """See grpc_service.proto."""
        require_operator(context)
        return pb.CudaSharedMemoryUnregisterResponse()
