#include "images.h"

#include <elf.h>

#include <cstring>

namespace fake {
namespace {

// SM X.Y runs on X.Z where Z is not below Y.
bool runs(uint32_t sm) {
    uint32_t const own = static_cast<uint32_t>(settings().sm);
    return sm / 10 == own / 10 && sm <= own;
}

template <typename T>
T at(char const* start) {
    T value;
    std::memcpy(&value, start, sizeof value);
    return value;
}

constexpr uint16_t CUDA_MACHINE = 190;
constexpr char MAGIC[] = "FAKECUDA";  // then 8 bytes: how many follow

// Attributes of kernels in .nv.info sections: a form, a number, and what the form says.
enum { FORM_SIZED = 4 };
enum { REQUIRED_THREADS = 0x10, PARAMETER_BYTES = 0x19 };

KernelFacts read_facts(char const* start, size_t size) {
    KernelFacts facts;
    for (size_t i = 0; i + 4 <= size;) {
        int const form = static_cast<uint8_t>(start[i]), kind = static_cast<uint8_t>(start[i + 1]);
        uint16_t const value = at<uint16_t>(start + i + 2);
        if (kind == PARAMETER_BYTES) facts.parameter_bytes = value;
        if (kind == REQUIRED_THREADS && form == FORM_SIZED && value >= 12) {
            char const* const sizes = start + i + 4;
            facts.threads = int64_t(at<uint32_t>(sizes)) * at<uint32_t>(sizes + 4) *
                            at<uint32_t>(sizes + 8);
        }
        i += 4 + (form == FORM_SIZED ? value : 0);
    }
    return facts;
}

uint32_t sm_of(Elf64_Ehdr const& header) {
    // From version 8 of the interface on, flags hold it one byte higher.
    return (header.e_ident[EI_ABIVERSION] >= 8 ? header.e_flags >> 8 : header.e_flags) & 0xff;
}

Error read_elf(char const* start, Image* image) {
    auto const header = at<Elf64_Ehdr>(start);
    bool const is_whole = header.e_machine == CUDA_MACHINE &&
                          header.e_shentsize == sizeof(Elf64_Shdr) &&
                          header.e_shstrndx < header.e_shnum;
    if (!is_whole) return INVALID_IMAGE;
    if (!runs(sm_of(header))) return NO_IMAGE_FOR_GPU;
    auto const section = [&](unsigned i) {
        return at<Elf64_Shdr>(start + header.e_shoff + i * sizeof(Elf64_Shdr));
    };
    char const* const names = start + section(header.e_shstrndx).sh_offset;
    std::string const text = ".text.", info = ".nv.info.";
    for (unsigned i = 0; i < header.e_shnum; ++i) {
        Elf64_Shdr const one = section(i);
        std::string const name = names + one.sh_name;
        if (name.rfind(text, 0) == 0) image->kernels[name.substr(text.size())];
        if (name.rfind(info, 0) == 0)
            image->kernels[name.substr(info.size())] =
                read_facts(start + one.sh_offset, one.sh_size);
    }
    return OK;
}

// A fat binary: a header, then images, each with a header of its own.
struct FatHeader {
    uint32_t magic;
    uint16_t version, header_bytes;
    uint64_t bytes;
};
struct FatImage {
    uint16_t kind, attributes;
    uint32_t header_bytes;
    uint64_t bytes;
    uint32_t unused[3];
    uint32_t sm;
};
constexpr uint32_t FAT_MAGIC = 0xba55ed50;
enum { PTX = 1, MACHINE_CODE = 2 };

}  // namespace

bool has_image(void const* code) {
    auto const start = static_cast<char const*>(code);
    if (std::memcmp(start, ELFMAG, SELFMAG) == 0) return runs(sm_of(at<Elf64_Ehdr>(start)));
    auto const header = at<FatHeader>(start);
    if (header.magic != FAT_MAGIC) return false;
    uint64_t const end = header.header_bytes + header.bytes;
    for (uint64_t i = header.header_bytes; i + sizeof(FatImage) <= end;) {
        auto const image = at<FatImage>(start + i);
        if (image.kind == MACHINE_CODE && runs(image.sm)) return true;
        // The driver compiles PTX for any GPU that is not older.
        if (image.kind == PTX && image.sm <= static_cast<uint32_t>(settings().sm)) return true;
        i += image.header_bytes + image.bytes;
    }
    return false;
}

Error read_image(void const* data, Image* image) {
    auto const start = static_cast<char const*>(data);
    if (std::memcmp(start, ELFMAG, SELFMAG) == 0) return read_elf(start, image);
    if (std::memcmp(start, MAGIC, 8) != 0) return INVALID_IMAGE;
    image->code.assign(start + 16, at<uint64_t>(start + 8));
    return OK;
}

}  // namespace fake
