/* The native core: what its files have in common.
 *
 * The core does the common case of reading a chunk of samples, with the same pixels as the Python
 * path, and gives every other sample back with a status. It holds no global state but tables that
 * are written once, never prints, never exits, and never reads or writes outside of what it was
 * given: sizes in files are checked before they are used.
 */
#ifndef SHARDIO_CORE_H
#define SHARDIO_CORE_H

#include <stddef.h>
#include <stdint.h>

/* Marks the functions that Python calls, whose names begin with shardio_. All others stay inside the
 * library. */
#define EXPORTED __attribute__((visibility("default")))

/* What became of a sample or of a part of one. Everything but DONE goes the Python way, which knows
 * the errors. */
enum status {
  DONE = 0,
  NOT_TAKEN = 1, /* a kind of file or of crop that the core does not do */
  UNSOUND = 2,   /* data that are cut short, damaged, or not what was announced */
  NO_MEMORY = 3,
};

/* A growing buffer that is kept between uses; {0} when it begins. */
struct buffer {
  uint8_t *bytes;
  size_t size;
};

/* Makes room for at least size bytes, whose content is undefined; NULL if there is no memory. */
uint8_t *buffer_take(struct buffer *buffer, size_t size);
void buffer_free(struct buffer *buffer);

/* Pixels in memory: rows of width * channels bytes, stride bytes apart. */
struct picture {
  uint8_t *pixels;
  ptrdiff_t stride;
  int32_t height, width, channels;
};

/* Which pixels of a picture fill a slot along one of its sides: shardio.fields.geometry.Axis. */
struct axis {
  int32_t offset, length, resized, window, kept, shrink;
};

/* crc32.c: CRC-32 as zlib.crc32 computes it; begins with 0. */
uint32_t crc32_of(uint32_t crc, const uint8_t *data, size_t size);

/* exif.c: the rules of shardio/fields/exif.py. */

/* Orientation that EXIF says, a TIFF structure with or without the prefix "Exif\0\0": the number of
 * the tag, whatever it is; -1 without such a tag, or in a broken structure. */
int64_t exif_orientation(const uint8_t *data, size_t size);

/* png.c: PNG of at most 8 bits a channel without interlacing. */
struct png {
  int32_t height, width;
  int32_t bits, colour;  /* as IHDR has them */
  int32_t orientation;   /* 1 to 8 */
  size_t palette, palette_entries; /* offset of PLTE's data, and number of its entries; 0 without */
};

/* Reads all chunks but the data, checking what shardio/fields/png.py checks of them. NOT_TAKEN also
 * where only the Python path can say what a text means. */
enum status png_probe(const uint8_t *data, size_t size, struct png *png);

/* Decodes pixels as stored (before orientation) with 1 (gray, only from gray), 3 (RGB) or 4 (RGBA)
 * channels, the same as shardio.fields.image.decode_image: alpha dropped for 3. NOT_TAKEN for what
 * it does not do. out has height rows of width * channels bytes, stride bytes apart. */
enum status png_pixels(const uint8_t *data, size_t size, const struct png *png, int channels,
                       uint8_t *out, ptrdiff_t stride, struct buffer *scratch);

/* Decodes the values of a PNG of one channel (gray or palette) as stored, the same as
 * shardio.fields.image.decode_values: uint8 [height, width]. */
enum status png_values(const uint8_t *data, size_t size, const struct png *png, uint8_t *out,
                       ptrdiff_t stride, struct buffer *scratch);

/* resample.c: the same pixels as shardio.fields.image.write_part makes, upright. Each fills out
 * (rows->kept x columns->kept pixels), mirrored left to right if flip. source holds the picture from
 * the axes' `first` pixels on, with at least as many rows and columns as are needed (Axis.needed). */

/* OpenCV's resize with INTER_LINEAR of the whole source, which is the crop's rectangle, to
 * rows->resized x columns->resized, of which the window is computed. */
enum status resize_linear(const struct picture *source, const struct axis *rows,
                          const struct axis *columns, int flip, const struct picture *out,
                          struct buffer *scratch);

/* OpenCV's warpAffine with INTER_LINEAR and BORDER_REPLICATE as _sampling's matrix asks for, where
 * axis.shrink > 1; source is the whole shrunk picture. */
enum status resize_shrunk(const struct picture *source, const struct axis *rows,
                          const struct axis *columns, int flip, const struct picture *out,
                          struct buffer *scratch);

/* shardio.fields.resample.write_antialiased. */
enum status resize_antialiased(const struct picture *source, const struct axis *rows,
                               const struct axis *columns, int cubic, int flip,
                               const struct picture *out, struct buffer *scratch);

/* shardio.fields.resample.write_nearest, for any number of channels. */
enum status resize_nearest(const struct picture *source, const struct axis *rows,
                           const struct axis *columns, int flip, const struct picture *out,
                           struct buffer *scratch);

#endif
