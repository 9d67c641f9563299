// A CUDA device without a driver, for tensors that have shapes and no values.
//
// Autograd's engine asks two things of CUDA before it runs a graph whose nodes are on a GPU: the device guard, for streams, and
// the hooks, whether a device has a context. Without a driver the second question is an error, although nothing would run there.
// Between `begin` and `end` the guard does nothing, and the hooks answer yes. All other questions have the answers they had.

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>

namespace {

using c10::Device;
using c10::DeviceType;
using c10::Stream;

const Device device{DeviceType::CUDA, 0};

// The interface itself is implemented: torch's own guard that does nothing is final before 2.11, and knows no default stream.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return device.type(); }
  Device exchangeDevice(Device) const override { return device; }
  Device getDevice() const override { return device; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }

  Stream getStream(Device) const noexcept override { return stream(); }
  Stream getDefaultStream(Device) const override { return stream(); }
  Stream getNewStream(Device, int) const override { return stream(); }
  Stream exchangeStream(Stream) const noexcept override { return stream(); }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}

  static Stream stream() { return Stream(Stream::DEFAULT, device); }
};

struct Hooks final : at::CUDAHooksInterface {
  bool isBuilt() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
};

// Torch holds its hooks by a constant reference and has no way to put others in their place, so the object gets another table of
// functions: a copy of its own with two entries of ours. This is the layout of the Itanium ABI, which is that of every compiler
// torch is built with on Linux and macOS.
constexpr std::size_t before = 2;  // words in front of the first function
constexpr std::size_t entries = 256;
std::array<void*, before + entries> table;

void**& table_of(const at::CUDAHooksInterface& hooks) {
  return *reinterpret_cast<void***>(const_cast<at::CUDAHooksInterface*>(&hooks));
}

template <typename Member>
std::size_t entry_of(Member member) {
  std::array<std::ptrdiff_t, 2> words;
  static_assert(sizeof(member) == sizeof(words));
  std::memcpy(words.data(), &member, sizeof(words));
  // Which of the two words says that a function is virtual depends on the processor.
  return static_cast<std::size_t>((words[1] & 1) != 0 ? words[0] : words[0] - 1) / sizeof(void*);
}

auto& registered() { return c10::impl::device_guard_impl_registry[static_cast<std::size_t>(DeviceType::CUDA)]; }

int depth = 0;
void** real_table = nullptr;
const c10::impl::DeviceGuardImplInterface* real_guard = nullptr;

}  // namespace

extern "C" {

void no_cuda_begin() {
  if (depth++ > 0) return;
  static const Guard guard;
  static const Hooks ours;
  auto& current = table_of(at::detail::getCUDAHooks());
  real_table = current;
  std::copy_n(real_table - before, table.size(), table.begin());
  for (const auto entry : {entry_of(&at::CUDAHooksInterface::isBuilt), entry_of(&at::CUDAHooksInterface::hasPrimaryContext)})
    table[before + entry] = table_of(ours)[entry];
  current = table.data() + before;
  real_guard = registered().exchange(&guard);
}

void no_cuda_end() {
  if (--depth > 0) return;
  table_of(at::detail::getCUDAHooks()) = real_table;
  registered().store(real_guard);
}

}  // extern "C"
