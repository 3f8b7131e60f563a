/* What packing asks of a JPEG: whether its data are sound, without decoding them to pixels.
 *
 * Packing promises that a file decodes to its end. For the common kind (baseline, one scan, Huffman
 * codes) it is enough to walk the codes: a file that is taken here has a table for each code, data
 * for each block, less than a byte left over, and restart markers in their places, so that libjpeg
 * decodes it without a warning. Whatever is otherwise, damaged or only unusual, is not taken: the
 * Python path decodes it, and decides.
 *
 * Values do not matter, only where codes end. So a table gives for the next bits how many of them
 * whole codes with their values take, and how many coefficients those fill; most steps pass over
 * several codes. Sections of ITU T.81: B (markers), C (tables), F.1.2 (codes of a block).
 */
#include <stdlib.h>
#include <string.h>

#include "core.h"

#define LOOK 13          /* bits that a table of AC codes is asked by */
#define LOOK_DC 9
#define LONGEST 16       /* bits of a code */
#define MOST_BITS 28     /* of a step: two follow each other without new bits */
#define SPARE 1024       /* bytes behind the data that a block may run over before it is noticed */
#define MOST_BLOCKS (1 << 20) /* of a picture: the sum of so many differences fits 32 bits */
#define SPEC (16 + 256)  /* counts of codes by length, and their symbols */
#define END 512          /* what the end of a block adds to the number of coefficients */

enum { DC, AC };

/* The codes of a table. */
struct codes {
    uint8_t spec[SPEC]; /* what it was made of */
    int is_made;
    int32_t most[LONGEST + 1];  /* the greatest code of each length, -1 without */
    int32_t first[LONGEST + 1]; /* what to add to a code for the place of its symbol */
    /* steps[n + b], where n is 2 to the power of a number of bits and b their value, is the step
     * over the codes that these bits show whole; 0 if they show none. */
    uint16_t steps[2 << LOOK];
};

struct checker {
    struct codes codes[2][4]; /* by class and number */
    struct buffer data;
};

struct checker *shardio_checker_new(void) { return calloc(1, sizeof(struct checker)); }

void shardio_checker_free(struct checker *checker)
{
    if (checker == NULL)
        return;
    buffer_free(&checker->data);
    free(checker);
}

/* A step: from bit 6 on the coefficients that it fills, below the bits that it takes. */
static unsigned bits_of(unsigned step) { return step & 63; }
static unsigned fills_of(unsigned step) { return step >> 6; }

/* The step over one symbol and its value; 0 if there is no such symbol. */
static uint16_t step_of(int kind, int length, int symbol)
{
    int size = symbol & 15, zeros = symbol >> 4;
    if (kind == DC)
        return symbol <= 11 ? (uint16_t)(length + symbol) : 0;
    if (size == 0 && zeros != 0 && zeros != 15)
        return 0;
    int fills = symbol == 0 ? END : zeros + 1;
    return (uint16_t)(fills << 6 | (length + size));
}

/* Fills the steps for codes of some bits from those for fewer. */
static void fill_steps(struct codes *codes, int kind, int look)
{
    const uint8_t *symbol = codes->spec + 16;
    uint16_t *out = codes->steps + (1 << look), *last = out + (1 << look);
    for (int length = 1; length <= look; length++)
        for (int count = codes->spec[length - 1]; count > 0; count--) {
            uint16_t step = step_of(kind, length, *symbol++);
            int takes = (int)bits_of(step);
            if (takes >= look || step >> 6 & END || kind == DC) {
                for (int each = 0; each < 1 << (look - length); each++)
                    *out++ = step;
                continue;
            }
            const uint16_t *rest = codes->steps + (1 << (look - takes));
            for (int value = 0; value < 1 << (takes - length); value++)
                for (int each = 0; each < 1 << (look - takes); each++)
                    *out++ = (uint16_t)(step + rest[each]);
        }
    memset(out, 0, (size_t)(last - out) * sizeof *out);
}

/* Finds the codes of each length; 0 if they are not those of a table. */
static int find_codes(struct codes *codes, int kind)
{
    int32_t code = 0;
    int place = 0;
    for (int length = 1; length <= LONGEST; length++, code <<= 1) {
        int count = codes->spec[length - 1];
        codes->first[length] = place - code;
        codes->most[length] = count ? code + count - 1 : -1;
        code += count;
        if (code >= 1 << length) /* no code is all ones */
            return 0;
        for (; count > 0; count--)
            if (step_of(kind, length, codes->spec[16 + place++]) == 0)
                return 0;
    }
    return 1;
}

static int make_codes(struct codes *codes, int kind, const uint8_t *spec)
{
    if (codes->is_made && memcmp(codes->spec, spec, SPEC) == 0)
        return 1;
    memcpy(codes->spec, spec, SPEC);
    codes->is_made = find_codes(codes, kind);
    if (codes->is_made)
        for (int look = kind == DC ? LOOK_DC : 0; look <= (kind == DC ? LOOK_DC : LOOK); look++)
            fill_steps(codes, kind, look);
    return codes->is_made;
}

/* The parts of a header. */
struct header {
    const uint8_t *frame, *scan;
    const uint8_t *specs[2][4]; /* 16 counts and the symbols */
    unsigned quantization;      /* which tables there are */
    unsigned restart;
    size_t start; /* of the scan's data */
};

static unsigned two_bytes(const uint8_t *data) { return (unsigned)data[0] << 8 | data[1]; }

static int read_codes(const uint8_t *data, const uint8_t *end, struct header *header)
{
    while (data < end) {
        int kind = *data >> 4, number = *data & 15, count = 0;
        data++;
        if (kind > 1 || number > 3 || end - data < 16)
            return 0;
        for (int length = 0; length < 16; length++)
            count += data[length];
        if (count > 256 || end - data < 16 + count)
            return 0;
        header->specs[kind][number] = data;
        data += 16 + count;
    }
    return 1;
}

static int read_quantization(const uint8_t *data, const uint8_t *end, struct header *header)
{
    while (data < end) {
        int wide = *data >> 4, number = *data & 15, size = wide ? 128 : 64;
        data++;
        if (wide > 1 || number > 3 || end - data < size)
            return 0;
        header->quantization |= 1u << number;
        data += size;
    }
    return 1;
}

/* Reads a header whose segments jpeg_probe has found whole. */
static int read_header(const uint8_t *data, struct header *header)
{
    size_t at = 2;
    memset(header, 0, sizeof *header);
    for (;;) {
        int marker = data[at + 1];
        const uint8_t *body = data + at + 4;
        unsigned length = two_bytes(data + at + 2);
        const uint8_t *end = data + at + 2 + length;
        at += 2 + length;
        if (marker == 0xC0 || marker == 0xC1) {
            header->frame = body;
        } else if (marker == 0xC2) {
            return 0;
        } else if (marker == 0xC4) {
            if (!read_codes(body, end, header))
                return 0;
        } else if (marker == 0xDB) {
            if (!read_quantization(body, end, header))
                return 0;
        } else if (marker == 0xDD) {
            if (length != 4)
                return 0;
            header->restart = two_bytes(body);
        } else if (marker == 0xEE) { /* says how colours are coded */
            if (length >= 14 && memcmp(body, "Adobe", 5) == 0 && body[11] > 1)
                return 0;
        } else if (marker == 0xDA) {
            header->scan = body;
            header->start = at;
            int components = body[0];
            return header->frame != NULL && components == header->frame[5] &&
                   length == 6u + 2u * (unsigned)components && body[1 + 2 * components] == 0 &&
                   body[2 + 2 * components] == 63 && body[3 + 2 * components] == 0;
        }
    }
}

/* The blocks of an MCU in their order, and the number of MCUs. */
struct layout {
    const struct codes *dc[10], *ac[10];
    int blocks;
    uint64_t mcus;
};

static const struct codes *codes_of(struct checker *checker, const struct header *header, int kind,
                                    int number)
{
    uint8_t spec[SPEC] = {0};
    if (number > 3 || header->specs[kind][number] == NULL)
        return NULL;
    const uint8_t *given = header->specs[kind][number];
    int count = 0;
    for (int length = 0; length < 16; length++)
        count += given[length];
    memcpy(spec, given, 16 + (size_t)count);
    struct codes *codes = &checker->codes[kind][number];
    return make_codes(codes, kind, spec) ? codes : NULL;
}

static int lay_out(struct checker *checker, const struct header *header, struct layout *layout)
{
    const uint8_t *frame = header->frame;
    unsigned height = two_bytes(frame + 1), width = two_bytes(frame + 3);
    int components = frame[5];
    unsigned down = 8, across = 8;
    layout->blocks = 0;
    for (int each = 0; each < components; each++) {
        const uint8_t *one = frame + 6 + 3 * each, *chosen = header->scan + 1 + 2 * each;
        const struct codes *dc = codes_of(checker, header, DC, chosen[1] >> 4);
        const struct codes *ac = codes_of(checker, header, AC, chosen[1] & 15);
        if (chosen[0] != one[0] || dc == NULL || ac == NULL || one[2] > 3 ||
            !(header->quantization >> one[2] & 1))
            return 0;
        unsigned wide = one[1] >> 4, high = one[1] & 15;
        if (wide < 1 || wide > 4 || high < 1 || high > 4)
            return 0;
        for (int other = 0; other < each; other++)
            if (frame[6 + 3 * other] == one[0])
                return 0;
        unsigned blocks = components == 1 ? 1 : wide * high;
        if (components > 1 && each == 0) { /* the colours are 1x1 */
            across *= wide;
            down *= high;
        }
        for (; blocks > 0; blocks--, layout->blocks++) {
            layout->dc[layout->blocks] = dc;
            layout->ac[layout->blocks] = ac;
        }
    }
    layout->mcus = (uint64_t)((height + down - 1) / down) * ((width + across - 1) / across);
    return layout->mcus * (uint64_t)layout->blocks <= MOST_BLOCKS;
}

/* Bits that come next, the first one highest. */
struct bits {
    uint64_t held;
    unsigned count;
    const uint8_t *next;
};

/* Makes at least 56 bits come next. */
static inline void refill(struct bits *bits)
{
    uint64_t eight;
    memcpy(&eight, bits->next, 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    eight = __builtin_bswap64(eight);
#endif
    bits->held |= eight >> bits->count;
    bits->next += (63 - bits->count) >> 3;
    bits->count |= 56;
}

static inline void pass(struct bits *bits, unsigned count)
{
    bits->held <<= count & 63;
    bits->count -= count;
}

/* Finds the step of the next code, of at least some length; 0 if there is no such code. */
static unsigned find_code(const struct codes *codes, int kind, uint64_t held, int length)
{
    for (; length <= LONGEST; length++) {
        int32_t code = (int32_t)(held >> (64 - length));
        if (code <= codes->most[length])
            return step_of(kind, length, codes->spec[16 + codes->first[length] + code]);
    }
    return 0;
}

/* Passes over the coefficients of a block from k on, a code at a time, as where a table passes over
 * codes of the next block. */
static int walk_codes(struct bits *bits, const struct codes *ac, unsigned k)
{
    while (k < 64) {
        refill(bits);
        unsigned step = find_code(ac, AC, bits->held, 1);
        if (step == 0)
            return 0;
        pass(bits, bits_of(step));
        k += fills_of(step);
    }
    return k == 64 || (k >= END && k < END + 64);
}

static inline int walk_block(struct bits *bits, const struct codes *dc, const struct codes *ac)
{
    refill(bits);
    unsigned step = dc->steps[(1 << LOOK_DC) + (bits->held >> (64 - LOOK_DC))];
    if (__builtin_expect(step == 0, 0))
        step = find_code(dc, DC, bits->held, LOOK_DC + 1);
    if (__builtin_expect(step == 0, 0))
        return 0;
    pass(bits, bits_of(step));
    for (unsigned k = 1;;) {
        unsigned before = k;
        if (__builtin_expect(bits->count < MOST_BITS, 0))
            refill(bits);
        step = ac->steps[(1 << LOOK) + (bits->held >> (64 - LOOK))];
        if (__builtin_expect(step == 0, 0)) {
            refill(bits);
            step = find_code(ac, AC, bits->held, LOOK + 1);
            if (step == 0)
                return 0;
        }
        k += fills_of(step);
        if (k < 64) {
            pass(bits, bits_of(step));
        } else if (__builtin_expect(k == 64 || (k >= END && k < END + 64), 1)) {
            pass(bits, bits_of(step));
            return 1;
        } else {
            return walk_codes(bits, ac, before);
        }
    }
}

/* Tells whether data hold exactly some MCUs; SPARE bytes may be read behind them. */
static int walk_interval(const uint8_t *data, size_t size, const struct layout *layout,
                         uint64_t mcus)
{
    struct bits bits = {0, 0, data};
    const uint8_t *end = data + size + 8;
    for (; mcus > 0; mcus--)
        for (int block = 0; block < layout->blocks; block++)
            if (!walk_block(&bits, layout->dc[block], layout->ac[block]) || bits.next > end)
                return 0;
    uint64_t used = (uint64_t)(bits.next - data) * 8 - bits.count;
    return used <= 8 * (uint64_t)size && 8 * (uint64_t)size - used < 8;
}

/* Copies data of a scan up to the next marker, without the zeros that are stuffed into them.
 * Returns the offset of the marker, size if there is none. */
static size_t unstuff(const uint8_t *data, size_t size, uint8_t *out, size_t *written)
{
    size_t at = 0, count = 0;
    for (;;) {
        const uint8_t *found = memchr(data + at, 0xFF, size - at);
        size_t end = found ? (size_t)(found - data) : size;
        memcpy(out + count, data + at, end - at);
        count += end - at;
        *written = count;
        if (size - end < 2)
            return size;
        if (data[end + 1] != 0)
            return end;
        out[count++] = 0xFF;
        at = end + 2;
    }
}

int shardio_jpeg_is_sound(struct checker *checker, const uint8_t *data, size_t size)
{
    struct jpeg_header known;
    struct header header;
    struct layout layout;
    if (jpeg_probe(data, size, &known) != DONE || !read_header(data, &header) ||
        !lay_out(checker, &header, &layout))
        return 0;
    size_t at = header.start;
    uint8_t *scan = buffer_take(&checker->data, size - at + SPARE);
    if (scan == NULL)
        return 0;
    uint64_t left = layout.mcus;
    for (unsigned restarts = 0;; restarts++) {
        size_t written;
        at += unstuff(data + at, size - at, scan, &written);
        if (size - at < 2)
            return 0;
        memset(scan + written, 0, SPARE);
        uint64_t mcus = header.restart && header.restart < left ? header.restart : left;
        if (!walk_interval(scan, written, &layout, mcus))
            return 0;
        left -= mcus;
        if (left == 0)
            return data[at + 1] == 0xD9;
        if (data[at + 1] != 0xD0 + (restarts & 7))
            return 0;
        at += 2;
    }
}
