// A CUDA driver of the dozen calls that the launcher makes. Kernels run on simulated threads. What it cannot check is
// a GPU; what it does check is every byte between Python and the driver: cuda.bindings, handles, symbols, parameters.
#include <dlfcn.h>

#include <map>

namespace {

using Run = std::function<void(dim3, dim3, void**)>;
struct Kernel {
  void* address;
  Run run;
};
template <typename... A> Kernel kernel_of(void (*kernel)(A...)) {
  return {reinterpret_cast<void*>(kernel),
          [=](dim3 grid, dim3 block, void** parameters) { cusim::launch_packed(kernel, grid, block, parameters); }};
}
#define UNPARENTHESISED(...) __VA_ARGS__
#define KERNEL(name) kernel_of(UNPARENTHESISED name),
std::vector<Kernel>& kernels() {
  static std::vector<Kernel> all = {
      // KERNELS
  };
  return all;
}

constexpr int OK = 0, INVALID_VALUE = 1, NO_CONTEXT = 201, NOT_FOUND = 500;
int context, depth = 0;
std::string loaded;

}  // namespace

extern "C" {
int cuInit(unsigned) { return OK; }
int cuDriverGetVersion(int* version) { return *version = 13000, OK; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, ordinal == 0 ? OK : INVALID_VALUE; }
int cuDevicePrimaryCtxRetain(void** to, int device) { return *to = &context, device == 0 ? OK : INVALID_VALUE; }
int cuCtxPushCurrent_v2(void* given) { return given == &context ? (++depth, OK) : INVALID_VALUE; }
int cuCtxPopCurrent_v2(void** to) { return *to = &context, depth-- > 0 ? OK : NO_CONTEXT; }
int cuModuleLoadData(void** module, const void* image) {
  *module = &loaded;
  return depth == 1 && std::memcmp(image, "\177ELF", 4) == 0 ? OK : INVALID_VALUE;
}
// The name is NVRTC's mangled symbol, which is g++'s too.
int cuModuleGetFunction(void** function, void* module, const char* name) {
  Dl_info self;
  dladdr(reinterpret_cast<void*>(&cuInit), &self);
  void* address = dlsym(dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD), name);
  for (Kernel& kernel : kernels()) {
    if (address != nullptr && kernel.address == address) return *function = &kernel, module == &loaded ? OK : INVALID_VALUE;
  }
  return NOT_FOUND;
}
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void* stream, void** parameters, void** extra) {
  if (depth != 1 || gy != 1 || gz != 1 || by != 1 || bz != 1 || shared != 0 || extra != nullptr) return INVALID_VALUE;
  if (stream != reinterpret_cast<void*>(77)) return INVALID_VALUE;
  static_cast<Kernel*>(function)->run(dim3(gx), dim3(bx), parameters);
  return cusim::errors ? INVALID_VALUE : OK;
}
int cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, int*) {
  static const std::map<std::string, void*> known = {
      {"cuInit", reinterpret_cast<void*>(&cuInit)},
      {"cuDriverGetVersion", reinterpret_cast<void*>(&cuDriverGetVersion)},
      {"cuDeviceGet", reinterpret_cast<void*>(&cuDeviceGet)},
      {"cuDevicePrimaryCtxRetain", reinterpret_cast<void*>(&cuDevicePrimaryCtxRetain)},
      {"cuCtxPushCurrent", reinterpret_cast<void*>(&cuCtxPushCurrent_v2)},
      {"cuCtxPopCurrent", reinterpret_cast<void*>(&cuCtxPopCurrent_v2)},
      {"cuModuleLoadData", reinterpret_cast<void*>(&cuModuleLoadData)},
      {"cuModuleGetFunction", reinterpret_cast<void*>(&cuModuleGetFunction)},
      {"cuLaunchKernel", reinterpret_cast<void*>(&cuLaunchKernel)},
      {"cuGetProcAddress", reinterpret_cast<void*>(&cuGetProcAddress_v2)},
  };
  const auto found = known.find(name);
  *function = found == known.end() ? nullptr : found->second;
  return found == known.end() ? NOT_FOUND : OK;
}
}
