/* PNG of at most 8 bits a channel, without interlacing: the same pixels as shardio/fields/png.py
 * and OpenCV make, or a status.
 *
 * The chunks are walked and checked as the Python path does it; what it would refuse or treat
 * specially is left to it. The data are inflated by one call into memory of exactly the rows'
 * size, the filters of a row are undone in place, and the row is written out while it is in the
 * cache.
 *
 * Sections of the W3C's PNG specification, third edition: 5 (chunks), 9 (filtering), 11 (chunks'
 * content). Paeth's predictor is chosen by two comparisons with one threshold, as in stb_image, so
 * that little waits for the pixel before.
 */
#include <string.h>

#include "core.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define KIND(a, b, c, d) ((uint32_t)(a) << 24 | (b) << 16 | (c) << 8 | (d))
#define MAX_CHUNKS 100000 /* this and the next four as shardio/fields/png.py and limits.py */
#define MAX_SIDE 1000000
#define FREE_BYTES 65536
#define EXPANSION 2
#define MAX_ROWS_SIZE ((uint64_t)1 << 26) /* larger ones are not kept in memory there either */
#define PADDING 16 /* bytes behind the rows that may be read */

enum { GRAY = 0, RGB = 2, PALETTE = 3, GRAY_ALPHA = 4, RGB_ALPHA = 6 }; /* types of colour */
enum { NONE, SUB, UP, AVERAGE, PAETH };                                 /* types of filter */

typedef uint8_t colour_table[256][4];

struct chunk {
    uint32_t kind;
    size_t start, length; /* of its data */
    size_t next;          /* offset of the next chunk */
};

static uint32_t number(const uint8_t *data)
{
    return KIND(data[0], data[1], data[2], data[3]);
}

/* Steps to the next chunk; 0 if the file ends before its end. */
static int next_chunk(const uint8_t *data, size_t size, struct chunk *chunk)
{
    size_t left = size - chunk->next;
    if (left < 12)
        return 0;
    chunk->length = number(data + chunk->next);
    if (chunk->length > left - 12)
        return 0;
    chunk->kind = number(data + chunk->next + 4);
    chunk->start = chunk->next + 8;
    chunk->next = chunk->start + chunk->length + 4;
    return 1;
}

static int is_intact(const uint8_t *data, const struct chunk *chunk)
{
    uint32_t found = shardio_crc32(0, data + chunk->start - 4, chunk->length + 4);
    return found == number(data + chunk->start + chunk->length);
}

/* Channels as stored; 0 for types of colour that do not exist. */
static int channels_of(int colour)
{
    static const uint8_t channels[] = {1, 0, 3, 1, 2, 0, 4};
    return colour < 7 ? channels[colour] : 0;
}

/* Bytes of a row without its filter type. */
static size_t row_size(const struct png *png)
{
    return ((size_t)png->width * (size_t)(channels_of(png->colour) * png->bits) + 7) / 8;
}

static uint64_t rows_size(const struct png *png)
{
    return (uint64_t)png->height * (1 + row_size(png));
}

static enum status read_header(const uint8_t *ihdr, struct png *png)
{
    uint32_t width = number(ihdr), height = number(ihdr + 4);
    if (width < 1 || height < 1 || width > MAX_SIDE || height > MAX_SIDE)
        return UNSOUND;
    png->width = (int32_t)width;
    png->height = (int32_t)height;
    png->bits = ihdr[8];
    png->colour = ihdr[9];
    int is_single = png->colour == GRAY || png->colour == PALETTE;
    int is_small = is_single && (png->bits == 1 || png->bits == 2 || png->bits == 4);
    if (!channels_of(png->colour) || !(png->bits == 8 || is_small))
        return NOT_TAKEN;
    if (ihdr[10] || ihdr[11] || ihdr[12])
        return NOT_TAKEN; /* another compression or filtering, or interlacing */
    return rows_size(png) > MAX_ROWS_SIZE ? NOT_TAKEN : DONE;
}

/* Tells whether a chunk of text may hold EXIF or XMP, which the Python path reads. */
static int is_metadata(const uint8_t *data, const struct chunk *chunk)
{
    static const char *const keywords[] = {"XML:com.adobe.xmp", "Raw profile type exif",
                                           "Raw profile type APP1"};
    for (int index = 0; index < 3; index++) {
        size_t length = strlen(keywords[index]);
        if (chunk->length >= length && memcmp(data + chunk->start, keywords[index], length) == 0)
            return 1;
    }
    return 0;
}

/* What a walk over the chunks has met. */
struct walk {
    uint32_t previous; /* kind of the chunk before */
    int has_exif, has_metadata_in_text;
    int64_t exif; /* as exif_orientation gives it */
};

static enum status meet(const uint8_t *data, const struct chunk *chunk, struct walk *walk,
                        struct png *png)
{
    switch (chunk->kind) {
    case KIND('I', 'D', 'A', 'T'):
        if (!png->data)
            png->data = chunk->start - 8;
        else if (walk->previous != chunk->kind)
            return NOT_TAKEN;
        png->packed += chunk->length;
        return DONE; /* whether it is intact is seen when it is inflated */
    case KIND('t', 'R', 'N', 'S'):
        png->is_transparent = 1;
        break;
    case KIND('P', 'L', 'T', 'E'):
        if (png->colour != PALETTE)
            break;
        if (png->palette || png->data || chunk->length % 3 || chunk->length > 3 * 256)
            return UNSOUND;
        png->palette = chunk->start;
        png->palette_entries = chunk->length / 3;
        break;
    case KIND('e', 'X', 'I', 'f'):
        if (!walk->has_exif)
            walk->exif = exif_orientation(data + chunk->start, chunk->length);
        walk->has_exif = 1;
        break;
    case KIND('t', 'E', 'X', 't'):
    case KIND('z', 'T', 'X', 't'):
    case KIND('i', 'T', 'X', 't'):
        walk->has_metadata_in_text |= is_metadata(data, chunk);
        break;
    case KIND('I', 'E', 'N', 'D'):
        break;
    default:
        if (chunk->kind >> 24 >= 'A' && chunk->kind >> 24 <= 'Z')
            return UNSOUND; /* an unknown one that matters, or a second header */
    }
    return is_intact(data, chunk) ? DONE : UNSOUND;
}

enum status png_probe(const uint8_t *data, size_t size, struct png *png)
{
    struct chunk chunk = {.next = 8};
    struct walk walk = {.exif = -1};
    *png = (struct png){.orientation = 1};
    if (size < 8 || memcmp(data, "\x89PNG\r\n\x1a\n", 8) != 0)
        return NOT_TAKEN;
    if (!next_chunk(data, size, &chunk) || chunk.kind != KIND('I', 'H', 'D', 'R') ||
        chunk.length != 13 || !is_intact(data, &chunk))
        return UNSOUND;
    enum status status = read_header(data + chunk.start, png);
    for (int count = 1; status == DONE && chunk.kind != KIND('I', 'E', 'N', 'D'); count++) {
        walk.previous = chunk.kind;
        if (count == MAX_CHUNKS || !next_chunk(data, size, &chunk))
            return UNSOUND;
        status = meet(data, &chunk, &walk, png);
    }
    if (status != DONE)
        return status;
    if (!png->data || (png->colour == PALETTE && !png->palette_entries))
        return UNSOUND;
    if (size > FREE_BYTES && png->packed > EXPANSION * rows_size(png) + FREE_BYTES)
        return NOT_TAKEN;
    if (walk.exif >= 1 && walk.exif <= 8)
        png->orientation = (int32_t)walk.exif;
    return walk.has_metadata_in_text && walk.exif < 0 ? NOT_TAKEN : DONE;
}

/* Checks the chunks of data, and copies what they hold one after another. */
static enum status join_data(const uint8_t *data, size_t size, const struct png *png, uint8_t *out)
{
    struct chunk chunk = {.next = png->data};
    for (size_t left = png->packed; next_chunk(data, size, &chunk);
         left -= chunk.length, out += chunk.length) {
        if (chunk.kind != KIND('I', 'D', 'A', 'T'))
            return left ? UNSOUND : DONE;
        if (chunk.length > left || !is_intact(data, &chunk))
            return UNSOUND;
        memcpy(out, data + chunk.start, chunk.length);
    }
    return UNSOUND;
}

/* Undoes the filters that look at the pixel to the left; step, the bytes of a pixel, is a constant
 * wherever this is called, so that those stay in registers. */
static inline __attribute__((always_inline)) void undo(int filter, uint8_t *row,
                                                       const uint8_t *above, size_t size,
                                                       const size_t step)
{
    uint8_t left[4] = {0}, corner[4] = {0};
    for (size_t place = 0; place < size; place += step)
        for (size_t channel = 0; channel < step; channel++) {
            int up = above[place + channel], predicted = left[channel];
            if (filter == AVERAGE) {
                predicted = (left[channel] + up) >> 1;
            } else if (filter == PAETH) {
                int threshold = 3 * corner[channel] - up - left[channel];
                int low = left[channel] < up ? left[channel] : up;
                int high = left[channel] < up ? up : left[channel];
                predicted = high <= threshold ? low : corner[channel];
                predicted = threshold <= low ? high : predicted;
                corner[channel] = (uint8_t)up;
            }
            left[channel] = row[place + channel] = (uint8_t)(row[place + channel] + predicted);
        }
}

#ifdef __SSE2__
static inline __m128i wide_pixel(const uint8_t *bytes)
{
    int32_t four;
    memcpy(&four, bytes, 4);
    return _mm_unpacklo_epi8(_mm_cvtsi32_si128(four), _mm_setzero_si128());
}

static inline __m128i choose(__m128i mask, __m128i yes, __m128i no)
{
    return _mm_or_si128(_mm_and_si128(mask, yes), _mm_andnot_si128(mask, no));
}

/* The same as undo of PAETH, a pixel of 3 or 4 bytes at a time, in lanes of 16 bits. The sums of
 * all three predictions are made beforehand, as each waits for the pixel before. */
static inline __attribute__((always_inline)) void undo_paeth(uint8_t *row, const uint8_t *above,
                                                             size_t size, const size_t step)
{
    __m128i left = _mm_setzero_si128(), corner = left;
    for (size_t place = 0; place < size; place += step) {
        __m128i raw = wide_pixel(row + place), up = wide_pixel(above + place);
        __m128i rest = _mm_sub_epi16(_mm_add_epi16(corner, _mm_add_epi16(corner, corner)), up);
        __m128i threshold = _mm_subs_epi16(rest, left); /* a kind that compilers do not regroup */
        __m128i low = _mm_min_epi16(left, up), high = _mm_max_epi16(left, up);
        __m128i found = choose(_mm_cmpgt_epi16(high, threshold), _mm_add_epi8(raw, corner),
                               _mm_add_epi8(raw, low));
        left = choose(_mm_cmpgt_epi16(threshold, low), found, _mm_add_epi8(raw, high));
        corner = up;
        int32_t four = _mm_cvtsi128_si32(_mm_packus_epi16(left, left));
        memcpy(row + place, &four, step);
    }
}
#else
#define undo_paeth(row, above, size, step) undo(PAETH, row, above, size, step)
#endif

static inline __attribute__((always_inline)) void undo_any(int filter, uint8_t *row,
                                                           const uint8_t *above, size_t size,
                                                           size_t step)
{
    if (step == 1)
        undo(filter, row, above, size, 1);
    else if (step == 2)
        undo(filter, row, above, size, 2);
    else if (step == 3 && filter == PAETH)
        undo_paeth(row, above, size, 3);
    else if (step == 3)
        undo(filter, row, above, size, 3);
    else if (filter == PAETH)
        undo_paeth(row, above, size, 4);
    else
        undo(filter, row, above, size, 4);
}

/* Undoes the filter of a row; 0 for an unknown one. */
static int unfilter(int filter, uint8_t *restrict row, const uint8_t *restrict above, size_t size,
                    size_t step)
{
    if (filter == SUB)
        undo_any(SUB, row, above, size, step);
    else if (filter == AVERAGE)
        undo_any(AVERAGE, row, above, size, step);
    else if (filter == PAETH)
        undo_any(PAETH, row, above, size, step);
    else if (filter == UP)
        for (size_t place = 0; place < size; place++)
            row[place] = (uint8_t)(row[place] + above[place]);
    return filter <= PAETH;
}

/* Spreads pixels of 1, 2 or 4 bits to a byte each. */
static void unpack(const uint8_t *row, int32_t width, int bits, uint8_t *out)
{
    int mask = (1 << bits) - 1, last = 8 - bits;
    for (int32_t column = 0; column < width; column++) {
        int bit = column * bits;
        out[column] = (uint8_t)(row[bit >> 3] >> (last - (bit & 7)) & mask);
    }
}

/* Fills the table of what a byte of one channel means. */
static void fill_table(const uint8_t *data, const struct png *png, colour_table table)
{
    int colours = 1 << png->bits, scale = 255 / (colours - 1);
    for (int value = 0; value < colours; value++) {
        memset(table[value], value * scale, 3);
        table[value][3] = 255;
    }
    if (png->colour != PALETTE)
        return;
    for (int value = 0; value < colours; value++)
        if ((size_t)value < png->palette_entries)
            memcpy(table[value], data + png->palette + 3 * value, 3);
        else
            memset(table[value], 0, 3);
}

/* Copies some channels of each pixel, the first one three times if it is gray and not the only
 * one, with an alpha of 255 where there is none. */
static inline __attribute__((always_inline)) void copy_channels(const uint8_t *row, int32_t width,
                                                                const int stored,
                                                                const int channels, uint8_t *out)
{
    for (int32_t column = 0; column < width; column++, row += stored, out += channels) {
        out[0] = row[0];
        if (channels >= 3) {
            out[1] = row[stored >= 3 ? 1 : 0];
            out[2] = row[stored >= 3 ? 2 : 0];
        }
        if (channels == 4)
            out[3] = stored == 3 ? 255 : row[stored - 1];
    }
}

static void look_up(const uint8_t *row, int32_t width, colour_table table, int channels,
                    uint8_t *out)
{
    if (channels == 1)
        for (int32_t column = 0; column < width; column++)
            out[column] = table[row[column]][0];
    else if (channels == 3)
        for (int32_t column = 0; column < width; column++)
            memcpy(out + 3 * (size_t)column, table[row[column]], 3);
    else
        for (int32_t column = 0; column < width; column++)
            memcpy(out + 4 * (size_t)column, table[row[column]], 4);
}

/* Writes a row of bytes, with a table for those of one channel; without, they are copied. */
static void write_row(const uint8_t *row, const struct png *png, colour_table table,
                      int channels, uint8_t *out)
{
    int stored = channels_of(png->colour);
    if (stored == 1 && table)
        look_up(row, png->width, table, channels, out);
    else if (stored == channels)
        memcpy(out, row, (size_t)png->width * (size_t)channels);
    else if (stored == 2 && channels == 1)
        copy_channels(row, png->width, 2, 1, out);
    else if (stored == 2 && channels == 3)
        copy_channels(row, png->width, 2, 3, out);
    else if (stored == 2)
        copy_channels(row, png->width, 2, 4, out);
    else if (stored == 3)
        copy_channels(row, png->width, 3, 4, out);
    else
        copy_channels(row, png->width, 4, 3, out);
}

/* Decodes to rows in out. The scratch holds a row of zeros, the rows, a row of unpacked pixels,
 * and the compressed data. */
static enum status decode(const uint8_t *data, size_t size, const struct png *png,
                          colour_table table, int channels, uint8_t *out, ptrdiff_t stride,
                          struct buffer *scratch)
{
    size_t length = row_size(png), total = (size_t)rows_size(png), width = (size_t)png->width;
    uint8_t *above = buffer_take(scratch, length + total + PADDING + width + png->packed);
    if (!above)
        return NO_MEMORY;
    uint8_t *row = above + length, *unpacked = row + total + PADDING, *packed = unpacked + width;
    enum status status = join_data(data, size, png, packed);
    if (status == DONE)
        status = inflate_exactly(packed, png->packed, row, total);
    if (status != DONE)
        return status;
    memset(above, 0, length);
    size_t step = (size_t)(channels_of(png->colour) * png->bits + 7) / 8;
    for (int32_t index = 0; index < png->height; index++, row += length, out += stride) {
        int filter = *row++;
        if (!unfilter(filter, row, above, length, step))
            return UNSOUND;
        above = row;
        if (png->bits < 8)
            unpack(row, png->width, png->bits, unpacked);
        write_row(png->bits < 8 ? unpacked : row, png, table, channels, out);
    }
    return DONE;
}

enum status png_pixels(const uint8_t *data, size_t size, const struct png *png, int channels,
                       uint8_t *out, ptrdiff_t stride, struct buffer *scratch)
{
    int is_gray = png->colour == GRAY || png->colour == GRAY_ALPHA;
    if (!(channels == 3 || channels == 4 || (channels == 1 && is_gray)))
        return NOT_TAKEN;
    if (channels == 4 && png->is_transparent)
        return NOT_TAKEN;
    colour_table table;
    int is_copied = png->bits == 8 && channels == 1;
    if (channels_of(png->colour) > 1 || is_copied)
        return decode(data, size, png, NULL, channels, out, stride, scratch);
    fill_table(data, png, table);
    return decode(data, size, png, table, channels, out, stride, scratch);
}

enum status png_values(const uint8_t *data, size_t size, const struct png *png, uint8_t *out,
                       ptrdiff_t stride, struct buffer *scratch)
{
    if (channels_of(png->colour) != 1)
        return NOT_TAKEN;
    return decode(data, size, png, NULL, 1, out, stride, scratch);
}
