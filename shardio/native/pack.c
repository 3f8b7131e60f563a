/* What packing asks of JPEGs: whether their data are sound, without decoding them to pixels.
 *
 * Packing promises that a file decodes to its end. For the common kind (baseline, one scan, Huffman
 * codes) it is enough to walk the codes: a file that is taken here has a table for each code, data
 * for each block, less than a byte left over, and restart markers in their places, so that libjpeg
 * decodes it without a warning. Whatever is otherwise, damaged or only unusual, is not taken: the
 * Python path decodes it, and decides.
 *
 * Values do not matter, only where codes end. So a table gives for the next bits how many of them
 * whole codes with their values take, and how many coefficients those fill; most steps pass over
 * several codes. Each step waits for the one before, so that a processor has time for another
 * picture meanwhile: some are walked at once, a step each, and no jump depends on the end of a
 * block. Sections of ITU T.81: B (markers), C (tables), F.1.2 (codes of a block).
 */
#include <stdlib.h>
#include <string.h>

#include "core.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-tree-slp-vectorize") /* which puts numbers of one picture side by side */
#endif

#define LOOK 12               /* bits that a table is asked by; two steps take at most 56 */
#define LANES 2               /* pictures that are walked at once */
#define LONGEST 16            /* bits of a code */
#define SPARE 1024            /* bytes behind the data that may be read before it is noticed */
#define MOST_BLOCKS (1 << 20) /* of a picture: the sum of so many differences fits 32 bits */
#define SPEC (16 + 256)       /* counts of codes by length, and their symbols */
#define MCU 10                /* blocks at most */
#define LAST (1 << 15)        /* added to a step that ends a block */
#define NONE (128 << 6)       /* a step that leads out of each block */

enum { DC, AC };

/* The codes of a table. */
struct codes {
    uint8_t spec[SPEC]; /* what it was made of */
    int kind, is_made, users;
    unsigned used; /* when it was last taken */
    int32_t most[LONGEST + 1];  /* the greatest code of each length, -1 without */
    int32_t first[LONGEST + 1]; /* what to add to a code for the place of its symbol */
    /* steps[n + b], where n is 2 to the power of a number of bits and b their value, is the step
     * over the codes that these bits show whole; NONE if they show none. */
    uint16_t steps[2 << LOOK];
};

/* A block of an MCU; the first one follows the last. */
struct block {
    /* What follows a step that is not the last of the block, and one that is. */
    const uint16_t *steps[2];
    const struct block *then[2];
    struct codes *dc, *ac;
};

/* The place in the blocks of an interval. */
struct walk {
    uint64_t held;         /* bits that come next, the first one highest */
    const uint8_t *next;   /* byte behind those that are held */
    const uint16_t *steps; /* of the code that comes next */
    const struct block *block;
    unsigned count;   /* bits held after the last refill */
    unsigned passed;  /* sum of the steps since then, of which the lower bits count */
    unsigned k;       /* coefficient that comes next */
    uint32_t left;    /* blocks */
};

/* A picture that is walked. */
struct lane {
    struct walk walk;
    const uint8_t *end;         /* where the interval has ended for sure */
    const uint8_t *data, *rest; /* the file, and the marker behind the interval */
    size_t size, written;       /* of the file, and bytes of the interval */
    uint32_t mcus;              /* behind the interval */
    unsigned restart, restarts;
    int blocks; /* of an MCU */
    struct block layout[MCU];
    struct buffer buffer; /* for the interval */
    uint8_t *sound;       /* where the answer goes; NULL if there is no picture */
};

struct checker {
    unsigned taken;
    struct codes codes[2 * MCU * LANES];
    struct lane lanes[LANES];
};

struct checker *shardio_checker_new(void) { return calloc(1, sizeof(struct checker)); }

void shardio_checker_free(struct checker *checker)
{
    if (checker == NULL)
        return;
    for (int each = 0; each < LANES; each++)
        buffer_free(&checker->lanes[each].buffer);
    free(checker);
}

/* A step: the bits that it takes, from bit 6 on the coefficients that it fills, and LAST. */
static unsigned bits_of(unsigned step) { return step & 63; }
static unsigned fills_of(unsigned step) { return step >> 6 & 511; }

/* The step over one symbol and its value; NONE if there is no such symbol. */
static uint16_t step_of(int kind, int length, int symbol)
{
    int size = symbol & 15, zeros = symbol >> 4;
    if (kind == DC)
        return symbol <= 11 ? (uint16_t)(1 << 6 | (length + symbol)) : NONE;
    if (size == 0 && zeros != 0 && zeros != 15)
        return NONE;
    return (uint16_t)((symbol == 0 ? LAST : (zeros + 1) << 6) | (length + size));
}

/* Fills the steps for codes of some bits from those for fewer. */
static void fill_steps(struct codes *codes, int look)
{
    const uint8_t *symbol = codes->spec + 16;
    uint16_t *out = codes->steps + (1 << look), *last = out + (1 << look);
    for (int length = 1; length <= look; length++)
        for (int count = codes->spec[length - 1]; count > 0; count--) {
            uint16_t step = step_of(codes->kind, length, *symbol++);
            int takes = (int)bits_of(step);
            if (takes >= look || step & LAST || codes->kind == DC) {
                for (int each = 0; each < 1 << (look - length); each++)
                    *out++ = step;
                continue;
            }
            const uint16_t *rest = codes->steps + (1 << (look - takes));
            for (int value = 0; value < 1 << (takes - length); value++)
                for (int each = 0; each < 1 << (look - takes); each++)
                    *out++ = rest[each] == NONE ? step : (uint16_t)(step + rest[each]);
        }
    while (out < last)
        *out++ = NONE;
}

/* Finds the codes of each length; 0 if they are not those of a table. */
static int find_codes(struct codes *codes)
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
            if (step_of(codes->kind, length, codes->spec[16 + place++]) == NONE)
                return 0;
    }
    return 1;
}

/* Returns the table of a specification, made if no picture has had the same lately; NULL if it is
 * none. */
static struct codes *take_codes(struct checker *checker, int kind, const uint8_t *given)
{
    uint8_t spec[SPEC] = {0};
    int count = 0;
    for (int length = 0; length < 16; length++)
        count += given[length];
    memcpy(spec, given, 16 + (size_t)count);
    struct codes *codes = NULL, *each = checker->codes;
    for (; each < checker->codes + sizeof checker->codes / sizeof *each; each++) {
        if (each->is_made && each->kind == kind && memcmp(each->spec, spec, SPEC) == 0) {
            codes = each;
            break;
        }
        if (each->users == 0 && (codes == NULL || each->used < codes->used))
            codes = each; /* there is one, as a picture takes at most two for a block */
    }
    if (codes != each) {
        memcpy(codes->spec, spec, SPEC);
        codes->kind = kind;
        codes->is_made = find_codes(codes);
        for (int look = kind == DC ? LOOK : 0; codes->is_made && look <= LOOK; look++)
            fill_steps(codes, look);
    }
    codes->used = ++checker->taken;
    codes->users += codes->is_made;
    return codes->is_made ? codes : NULL;
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

static void free_layout(struct lane *lane)
{
    for (; lane->blocks > 0; lane->blocks--) {
        lane->layout[lane->blocks - 1].dc->users--;
        lane->layout[lane->blocks - 1].ac->users--;
    }
}

/* Adds blocks of a component to an MCU. */
static int add_blocks(struct checker *checker, struct lane *lane, const struct header *header,
                      int tables, unsigned count)
{
    int dc = tables >> 4, ac = tables & 15;
    if (dc > 3 || ac > 3 || header->specs[DC][dc] == NULL || header->specs[AC][ac] == NULL)
        return 0;
    for (; count > 0 && lane->blocks < MCU; count--) {
        struct block *block = &lane->layout[lane->blocks];
        block->then[0] = block;
        block->then[1] = lane->layout;
        block->dc = take_codes(checker, DC, header->specs[DC][dc]);
        if (block->dc == NULL)
            return 0;
        block->ac = take_codes(checker, AC, header->specs[AC][ac]);
        if (block->ac == NULL) {
            block->dc->users--;
            return 0;
        }
        block->steps[0] = block->ac->steps + (1 << LOOK);
        block->steps[1] = lane->layout->dc->steps + (1 << LOOK);
        if (lane->blocks++ > 0) {
            block[-1].then[1] = block;
            block[-1].steps[1] = block->dc->steps + (1 << LOOK);
        }
    }
    return count == 0;
}

/* Finds the blocks of an MCU in their order, and the number of MCUs. */
static int lay_out(struct checker *checker, struct lane *lane, const struct header *header)
{
    const uint8_t *frame = header->frame;
    unsigned height = two_bytes(frame + 1), width = two_bytes(frame + 3);
    int components = frame[5];
    unsigned down = 8, across = 8;
    for (int each = 0; each < components; each++) {
        const uint8_t *one = frame + 6 + 3 * each, *chosen = header->scan + 1 + 2 * each;
        if (chosen[0] != one[0] || one[2] > 3 || !(header->quantization >> one[2] & 1))
            return 0;
        unsigned wide = one[1] >> 4, high = one[1] & 15;
        if (wide < 1 || wide > 4 || high < 1 || high > 4)
            return 0;
        for (int other = 0; other < each; other++)
            if (frame[6 + 3 * other] == one[0])
                return 0;
        if (!add_blocks(checker, lane, header, chosen[1], components == 1 ? 1 : wide * high))
            return 0;
        if (components > 1 && each == 0) { /* the colours are 1x1 */
            across *= wide;
            down *= high;
        }
    }
    uint64_t mcus = (uint64_t)((height + down - 1) / down) * ((width + across - 1) / across);
    lane->mcus = (uint32_t)mcus;
    return mcus * (uint64_t)lane->blocks <= MOST_BLOCKS;
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

/* Begins with the next MCUs, up to a restart marker; 0 if they are not there. */
static int begin_interval(struct lane *lane)
{
    size_t size = lane->size - (size_t)(lane->rest - lane->data);
    uint8_t *bytes = buffer_take(&lane->buffer, size + SPARE);
    if (bytes == NULL)
        return 0;
    lane->rest += unstuff(lane->rest, size, bytes, &lane->written);
    if (lane->size - (size_t)(lane->rest - lane->data) < 2)
        return 0;
    memset(bytes + lane->written, 0, SPARE);
    uint32_t mcus = lane->restart && lane->restart < lane->mcus ? lane->restart : lane->mcus;
    lane->mcus -= mcus;
    lane->end = bytes + lane->written + 8;
    lane->walk = (struct walk){.next = bytes,
                               .block = lane->layout,
                               .steps = lane->layout->dc->steps + (1 << LOOK),
                               .left = mcus * (uint32_t)lane->blocks};
    return 1;
}

/* Begins to walk a file, if it is of the common kind. */
static int begin(struct checker *checker, struct lane *lane, const uint8_t *data, size_t size)
{
    struct jpeg_header known;
    struct header header;
    lane->data = data;
    lane->size = size;
    lane->restarts = 0;
    if (jpeg_probe(data, size, &known) == DONE && read_header(data, &header) &&
        lay_out(checker, lane, &header)) {
        lane->rest = data + header.start;
        lane->restart = header.restart;
        if (begin_interval(lane))
            return 1;
    }
    free_layout(lane);
    return 0;
}

/* Makes at least 56 bits come next. */
static inline void refill(struct walk *walk)
{
    unsigned count = walk->count - bits_of(walk->passed);
    uint64_t eight;
    memcpy(&eight, walk->next, 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    eight = __builtin_bswap64(eight);
#endif
    walk->held |= eight >> count;
    walk->next += (63 - count) >> 3;
    walk->count = count | 56;
    walk->passed = 0;
}

/* Passes over a code, or several, to a coefficient of the block, unless it ends with them. */
static inline void pass(struct walk *walk, unsigned step, unsigned k)
{
    unsigned is_last = step / LAST;
    const struct block *block = walk->block;
    __asm__("" : "+r"(is_last)); /* no compiler makes a jump of it, which would be mispredicted */
    walk->held <<= step & 63;
    walk->passed += step;
    walk->steps = block->steps[is_last];
    walk->block = block->then[is_last];
    walk->k = k & (is_last - 1);
    walk->left -= is_last;
}

/* Passes over one code; 0 if there is none. */
static int pass_one(struct walk *walk)
{
    const struct codes *codes = walk->k == 0 ? walk->block->dc : walk->block->ac;
    refill(walk);
    for (int length = 1; length <= LONGEST; length++) {
        int32_t code = (int32_t)(walk->held >> (64 - length));
        if (code <= codes->most[length]) {
            int symbol = codes->spec[16 + codes->first[length] + code];
            unsigned step = step_of(codes->kind, length, symbol), k = walk->k + fills_of(step);
            if (k == 64)
                step |= LAST;
            else if (k > 64)
                return 0;
            pass(walk, step, k);
            return 1;
        }
    }
    return 0;
}

/* Makes a step; 0 if it is none. */
static inline __attribute__((always_inline)) int step_on(struct walk *walk)
{
    unsigned step = walk->steps[walk->held >> (64 - LOOK)], k = walk->k + (step >> 6);
    if (__builtin_expect((k & 448) == 0, 1)) {
        pass(walk, step, k & 63);
        return 1;
    }
    struct walk copy = *walk; /* without an address, the other lies in registers */
    int is_sound = pass_one(&copy);
    *walk = copy;
    return is_sound;
}

/* Tells whether two steps do not lead beside the blocks or the data. */
static inline int has_room(const struct walk *walk, const uint8_t *end)
{
    return walk->left > 1 && walk->next <= end;
}

/* Walks until one of two is at its last block, or is not sound; tells which. */
static int walk_two(struct lane *first, struct lane *second)
{
    struct walk one = first->walk, other = second->walk;
    const uint8_t *end = first->end, *other_end = second->end;
    int is_first;
    for (;;) {
        is_first = 1;
        if (!has_room(&one, end))
            break;
        is_first = 0;
        if (!has_room(&other, other_end))
            break;
        refill(&one);
        refill(&other);
        is_first = 1;
        if (!step_on(&one))
            break;
        is_first = 0;
        if (!step_on(&other))
            break;
        is_first = 1;
        if (!step_on(&one))
            break;
        is_first = 0;
        if (!step_on(&other))
            break;
    }
    first->walk = one;
    second->walk = other;
    return !is_first;
}

static void walk_one(struct lane *lane)
{
    struct walk walk = lane->walk;
    do {
        if (!has_room(&walk, lane->end))
            break;
        refill(&walk);
    } while (step_on(&walk) && step_on(&walk));
    lane->walk = walk;
}

/* Goes on behind the last block of an interval. Returns 1 if there are more blocks, else 0 and
 * whether the picture is sound. */
static int end_interval(struct lane *lane)
{
    struct walk *walk = &lane->walk;
    while (walk->left > 0)
        if (walk->next > lane->end || !pass_one(walk)) {
            free_layout(lane);
            return 0;
        }
    refill(walk);
    uint64_t used = (uint64_t)(walk->next - lane->buffer.bytes) * 8 - walk->count;
    uint64_t there = 8 * (uint64_t)lane->written;
    if (used <= there && there - used < 8) {
        if (lane->mcus == 0) {
            *lane->sound = lane->rest[1] == 0xD9;
        } else if (lane->rest[1] == 0xD0 + (lane->restarts++ & 7)) {
            lane->rest += 2;
            if (begin_interval(lane))
                return 1;
        }
    }
    free_layout(lane);
    return 0;
}

void shardio_jpegs_are_sound(struct checker *checker, int64_t count, const uint8_t *const *files,
                             const size_t *sizes, uint8_t *sound)
{
    struct lane *lanes[LANES];
    int running = 0;
    memset(sound, 0, (size_t)count);
    for (int64_t next = 0;;) {
        for (; running < LANES && next < count; next++) {
            struct lane *lane = NULL;
            for (int each = 0; each < LANES; each++)
                if (checker->lanes[each].blocks == 0)
                    lane = &checker->lanes[each];
            lane->sound = &sound[next];
            if (begin(checker, lane, files[next], sizes[next]))
                lanes[running++] = lane;
        }
        if (running == 0)
            return;
        int stopped = 0;
        if (running == LANES)
            stopped = walk_two(lanes[0], lanes[1]);
        else
            walk_one(lanes[0]);
        struct lane *lane = lanes[stopped];
        if (!end_interval(lane))
            lanes[stopped] = lanes[--running];
    }
}
