// A CPU allocator around torch's own: it counts live bytes, logs events, and can be full.
//
// Installed once per process and for good: blocks that it has handed out come back to it whenever they do.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace {

struct Event {
  int64_t address;
  int64_t nbytes;  // negative where a block is freed
};

struct Counting final : c10::Allocator {
  explicit Counting(c10::Allocator* around) : inner(around) {}

  c10::DataPtr allocate(size_t nbytes) override {
    const auto wanted = static_cast<int64_t>(nbytes);
    take(wanted);
    void* data = nullptr;
    try {
      data = inner->raw_allocate(nbytes);
    } catch (...) {
      give_back(wanted);
      throw;
    }
    // A request for nothing gets nothing, which is never freed.
    if (data == nullptr || wanted == 0)
      give_back(wanted);
    else
      note(data, wanted);
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }

  // As torch's own: the context is the data, so that raw_allocate works.
  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  bool is_simple_data_ptr(const c10::DataPtr& data) const override { return inner->is_simple_data_ptr(data); }

  void copy_data(void* to, const void* from, std::size_t count) const override { inner->copy_data(to, from, count); }

  static void release(void* data);

  // Before the block is had: two threads must not both get the last bytes.
  void take(int64_t nbytes) {
    const std::lock_guard<std::mutex> guard(lock);
    if (capacity >= 0 && nbytes > capacity - (alive - alive_at_capacity))
      C10_THROW_ERROR(
          OutOfMemoryError,
          c10::str("DefaultCPUAllocator: can't allocate memory: you tried to allocate ", nbytes, " bytes, and ",
                   alive - alive_at_capacity, " of a capacity of ", capacity, " are taken"));
    alive += nbytes;
  }

  void give_back(int64_t nbytes) {
    const std::lock_guard<std::mutex> guard(lock);
    alive -= nbytes;
  }

  void note(void* data, int64_t nbytes) {
    const std::lock_guard<std::mutex> guard(lock);
    sizes.emplace(data, nbytes);
    if (readers > 0) log.push_back({reinterpret_cast<int64_t>(data), nbytes});
  }

  // Before the block is freed: another thread may get its address at once.
  void forget(void* data) {
    const std::lock_guard<std::mutex> guard(lock);
    const auto found = sizes.find(data);
    if (found == sizes.end()) return;  // older than this allocator
    alive -= found->second;
    if (readers > 0) log.push_back({reinterpret_cast<int64_t>(data), -found->second});
    sizes.erase(found);
  }

  c10::Allocator* const inner;
  std::mutex lock;
  std::unordered_map<void*, int64_t> sizes;
  std::vector<Event> log;
  int64_t alive = 0;
  int64_t capacity = -1;  // no limit
  int64_t alive_at_capacity = 0;
  int readers = 0;
};

// Never deleted: tensors may be freed when the program's own statics are gone already.
Counting* counting = nullptr;

void Counting::release(void* data) {
  if (data == nullptr) return;
  counting->forget(data);
  counting->inner->raw_deallocate(data);
}

}  // namespace

extern "C" {

// 1 if every tensor on a CPU now comes from here; 0 where torch's allocator cannot be wrapped, or another has precedence.
int counting_install() {
  if (counting == nullptr) {
    c10::Allocator* around = c10::GetCPUAllocator();
    if (around->raw_deleter() == nullptr) return 0;
    counting = new Counting(around);
    c10::SetCPUAllocator(counting, 200);
  }
  return c10::GetCPUAllocator() == counting;
}

int64_t counting_alive() {
  const std::lock_guard<std::mutex> guard(counting->lock);
  return counting->alive;
}

// Bytes that may be taken from now on; negative for no limit.
void counting_limit(int64_t capacity) {
  const std::lock_guard<std::mutex> guard(counting->lock);
  counting->capacity = capacity;
  counting->alive_at_capacity = counting->alive;
}

// One more reader of the log (1) or one fewer (-1), and how many events there are. The last one to go takes the log along.
int64_t counting_readers(int change) {
  const std::lock_guard<std::mutex> guard(counting->lock);
  counting->readers += change;
  const auto length = static_cast<int64_t>(counting->log.size());
  if (counting->readers == 0) std::vector<Event>().swap(counting->log);
  return length;
}

// Copies events, each an address and a number of bytes.
void counting_read(int64_t first, int64_t count, Event* to) {
  const std::lock_guard<std::mutex> guard(counting->lock);
  for (int64_t index = 0; index < count; ++index) to[index] = counting->log[first + index];
}

}  // extern "C"
