// Reports the layout of parameter blocks, for comparison with their Rust twins.
#pragma once
#include <stddef.h>
#include <stdint.h>

// Writes one word after the other, as far as they fit.
struct LayoutWriter {
    uint32_t* out;
    uint32_t capacity;
    uint32_t count;
    __device__ __forceinline__ void put(size_t value) {
        if (count < capacity) out[count] = uint32_t(value);
        ++count;
    }
};

#define LAYOUT_BEGIN(writer, Type) (writer).put(sizeof(Type))
#define LAYOUT_FIELD(writer, Type, field) (writer).put(offsetof(Type, field))
