"""The devices that llama.cpp computes on, more of them on other machines, and the nodes of this one's memory."""
from .headers.llama cimport (
    GGML_BACKEND_DEVICE_TYPE_ACCEL, GGML_BACKEND_DEVICE_TYPE_CPU, GGML_BACKEND_DEVICE_TYPE_GPU,
    GGML_BACKEND_DEVICE_TYPE_IGPU, GGML_BACKEND_DEVICE_TYPE_META, GGML_NUMA_STRATEGY_COUNT, RPC_PROTO_MAJOR_VERSION,
    RPC_PROTO_MINOR_VERSION, ggml_backend_buffer_type_t, ggml_backend_buft_name, ggml_backend_cpu_buffer_type,
    ggml_backend_dev_backend_reg, ggml_backend_dev_buffer_type, ggml_backend_dev_count,
    ggml_backend_dev_description, ggml_backend_dev_get,
    ggml_backend_dev_get_props, ggml_backend_dev_name, ggml_backend_dev_props, ggml_backend_dev_t,
    ggml_backend_dev_type, ggml_backend_reg_by_name, ggml_backend_reg_get_proc_address, ggml_backend_reg_name,
    ggml_backend_reg_t, ggml_backend_register, llama_numa_init, llama_supports_rpc,
)

from collections import namedtuple

ctypedef ggml_backend_reg_t (*add_server_t)(const char *endpoint) noexcept nogil

# ``buffers`` is the name of the type of its buffers, ``id`` tells the same card from another (None: nobody knows).
Device = namedtuple("Device", "name description type backend buffers id free total")

cdef dict TYPES = {
    GGML_BACKEND_DEVICE_TYPE_CPU: "CPU", GGML_BACKEND_DEVICE_TYPE_GPU: "GPU", GGML_BACKEND_DEVICE_TYPE_IGPU: "IGPU",
    GGML_BACKEND_DEVICE_TYPE_ACCEL: "ACCEL", GGML_BACKEND_DEVICE_TYPE_META: "META",
}

cdef bytes RPC = b"RPC"     # the backend of devices on other machines
# Major and minor version of what RPC servers and their clients speak.
RPC_PROTOCOL = (RPC_PROTO_MAJOR_VERSION, RPC_PROTO_MINOR_VERSION)


def devices(servers=()):
    """All that are registered, in llama.cpp's order, CPUs too; of other machines those of ``servers`` (host:port),
    which are asked over the network. Another one may have ended, and would end the process."""
    cdef list found = []
    cdef ggml_backend_dev_t device
    cdef ggml_backend_dev_props props
    cdef size_t i
    for i in range(ggml_backend_dev_count()):
        device = ggml_backend_dev_get(i)
        if is_remote(device) and ggml_backend_dev_description(device).decode("utf-8", "replace") not in servers:
            continue
        props.device_id = NULL
        with nogil:
            ggml_backend_dev_get_props(device, &props)
        found.append(Device(
            props.name.decode("utf-8", "replace"),
            props.description.decode("utf-8", "replace"),
            TYPES.get(props.type, ""),
            ggml_backend_reg_name(ggml_backend_dev_backend_reg(device)).decode("utf-8", "replace"),
            ggml_backend_buft_name(buffers_of(device)).decode("utf-8", "replace"),
            None if props.device_id == NULL else props.device_id.decode("utf-8", "replace"),
            props.memory_free,
            props.memory_total,
        ))
    return found


def supports_rpc():
    """Whether the linked llama.cpp can compute on other machines."""
    return llama_supports_rpc()


def add_rpc_server(str endpoint not None):
    """Register the devices of the server at ``endpoint`` (host:port). One that does not answer, or speaks another
    version, ends the process: ask it before. Raises ValueError where llama.cpp knows no RPC, or the server no device.
    """
    cdef bytes raw = endpoint.encode()
    cdef const char *c_endpoint = raw
    cdef ggml_backend_reg_t rpc = ggml_backend_reg_by_name(RPC), server
    cdef add_server_t add_server = NULL
    if rpc != NULL:
        add_server = <add_server_t> ggml_backend_reg_get_proc_address(rpc, b"ggml_backend_rpc_add_server")
    if add_server == NULL:
        raise ValueError("this llama.cpp was built without RPC")
    with nogil:
        server = add_server(c_endpoint)
    if server == NULL:
        raise ValueError(f"{endpoint} has no device")
    ggml_backend_register(server)


def init_numa(int strategy):
    """enum ggml_numa_strategy, for all threads of this process that will compute. Once: llama.cpp takes no second one.
    Raises ValueError for none of its strategies."""
    if not 0 <= strategy < GGML_NUMA_STRATEGY_COUNT:
        raise ValueError(f"{strategy} is no strategy")
    llama_numa_init(strategy)


cdef bint offloads() noexcept:
    """Whether this machine has a device that layers may go to."""
    cdef ggml_backend_dev_t device
    cdef size_t i
    for i in range(ggml_backend_dev_count()):
        device = ggml_backend_dev_get(i)
        if takes_layers(device) and not is_remote(device):
            return True
    return False


cdef bint takes_layers(ggml_backend_dev_t device) noexcept:
    """llama.cpp ends the process where layers are to go to another one."""
    return ggml_backend_dev_type(device) in (GGML_BACKEND_DEVICE_TYPE_GPU, GGML_BACKEND_DEVICE_TYPE_IGPU)


cdef bint is_remote(ggml_backend_dev_t device) noexcept:
    return ggml_backend_reg_name(ggml_backend_dev_backend_reg(device)) == RPC


cdef ggml_backend_dev_t device_named(str name) except NULL:
    """Raises ValueError."""
    cdef bytes wanted = name.encode()
    cdef ggml_backend_dev_t device
    cdef size_t i
    for i in range(ggml_backend_dev_count()):
        device = ggml_backend_dev_get(i)
        if ggml_backend_dev_name(device) == wanted and takes_layers(device):
            return device
    raise ValueError(f"devices: there is no {name} that layers can go to")


cdef ggml_backend_buffer_type_t buffers_named(str name) except NULL:
    """Raises ValueError."""
    cdef bytes wanted = name.encode()
    cdef size_t i
    for i in range(ggml_backend_dev_count()):
        if ggml_backend_buft_name(buffers_of(ggml_backend_dev_get(i))) == wanted:
            return buffers_of(ggml_backend_dev_get(i))
    raise ValueError(f"tensor_buft_overrides: there is no type of buffers {name}")


cdef ggml_backend_buffer_type_t buffers_of(ggml_backend_dev_t device) noexcept:
    """What computes beside the CPU may have none of its own."""
    cdef ggml_backend_buffer_type_t buffers = ggml_backend_dev_buffer_type(device)
    return ggml_backend_cpu_buffer_type() if buffers == NULL else buffers
