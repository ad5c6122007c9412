#!/bin/sh
# Lets PyTorch load, and compute on the CPU, without the 3 GB of CUDA libraries that its wheel for
# Linux is linked to: `without_cuda.sh PYTHON` puts empty ones in their place, beside that Python.
# None of their functions is called where there is no GPU, so none has to be found: not before it is
# called (the dynamic linker's RTLD_LAZY). Needs a C compiler.
set -eu
[ "$(uname)" = Linux ] || exit 0
site=$("$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
libraries=$site/nvidia/cu13/lib
versions=$libraries/versions.map
mkdir -p "$libraries"

empty() { # NAME VERSION: the library NAME of what standard input says in C
  printf '%s { global: *; };\n' "$2" >"$versions"
  cc -x c -shared -nostdlib -Wl,-soname,"$1" -Wl,--version-script="$versions" \
    -o "$libraries/$1" -
}

for name in libcublas.so.13 libcublasLt.so.13 libcudnn.so.9 libcufft.so.12 libcufile.so.0 \
  libcusparse.so.12 libcusparseLt.so.0 libnccl.so.2 libnvrtc.so.13; do
  empty "$name" "$name" </dev/null
done
# Of this one PyTorch wants to know places in memory as soon as it loads.
empty libnvshmem_host.so.3 NVSHMEM <<END
long nvshmem_selected_device_transport[64], nvshmemi_device_only_state[64];
void nvshmem_init(void) {}
void nvshmemi_get_device_state_ptrs(void) {}
END
rm "$versions"
echo 'import os, sys; sys.setdlopenflags(os.RTLD_LAZY)' >"$site/without_cuda.pth"
