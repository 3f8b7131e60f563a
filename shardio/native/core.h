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
EXPORTED uint32_t shardio_crc32(uint32_t crc, const uint8_t *data, size_t size);

/* inflate.c: inflates a zlib stream into memory; DONE only if zlib would find it sound and it gives
 * exactly size bytes. Of an unsound one, some may be written. */
enum status inflate_exactly(const uint8_t *packed, size_t packed_size, uint8_t *out, size_t size);

/* exif.c: the rules of shardio/fields/exif.py. */

/* Orientation that EXIF says, a TIFF structure with or without the prefix "Exif\0\0": the number of
 * the tag, whatever it is; -1 without such a tag, or in a broken structure. */
int64_t exif_orientation(const uint8_t *data, size_t size);

/* png.c: PNG of at most 8 bits a channel without interlacing. */
struct png {
  int32_t height, width;
  int32_t bits, colour;  /* as IHDR has them */
  int32_t orientation;   /* 1 to 8 */
  int32_t is_transparent; /* whether it has a tRNS chunk */
  size_t palette, palette_entries; /* offset of PLTE's data, and number of its entries; 0 without */
  size_t data, packed;   /* offset of the first IDAT chunk, and bytes of the compressed data */
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

/* jpeg.c: baseline and progressive JPEG of 8 bits, in gray or three colours. */
struct jpeg; /* a decoder, for one thread at a time */
struct jpeg *jpeg_new(void);
void jpeg_free(struct jpeg *jpeg);

struct jpeg_header {
  int32_t height, width; /* as stored */
  int32_t components, orientation;
  size_t scans; /* at least as many as the file has */
  int32_t has_plain_end; /* whether nothing but restarts lies between the first scan and the end */
};

enum status jpeg_probe(const uint8_t *data, size_t size, struct jpeg_header *header);

/* What is needed of a picture as stored, at its full size. */
struct jpeg_region {
  int32_t top, left, bottom, right;
  int32_t shrink;   /* 1, 2, 4 or 8: divides height and width, rounded up */
  int32_t channels; /* 1 or 3 */
  int32_t to_end;   /* whether to decode the rows below too, where damage is noticed */
};

/* Decodes a region into the buffer. out shows it; at a reduced size it has the sides of the whole
 * picture, of which only the region and one pixel around it are filled. */
enum status jpeg_pixels(struct jpeg *jpeg, const uint8_t *data, size_t size,
                        const struct jpeg_header *header, const struct jpeg_region *region,
                        struct picture *out, struct buffer *buffer);

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

/* fill.c: the entry points. */

/* What a field of the samples of a batch becomes. */
enum kind {
  PICTURE = 0, /* pixels of an image file, in a slot: uint8 [height, width, channels] */
  VALUES = 1,  /* values of a PNG of one channel by nearest pixels: uint8 [height, width] */
  ROW = 2,     /* bytes after a prefix that all members share */
  BYTES = 3,   /* the member as it is, and zeros up to the stride */
  NUMBER = 4,  /* a decimal integer of at most 18 digits in text: int64 */
};

enum method { LINEAR = 0, ANTIALIASED = 1, CUBIC_ANTIALIASED = 2, NEAREST = 3 };

struct field {
  uint8_t *out;          /* slot of the first sample */
  int64_t stride;        /* bytes from one slot to the next */
  const uint8_t *prefix; /* of a ROW */
  int64_t prefix_size, max_pixels;
  int32_t kind, role; /* role: which views it has */
  int32_t height, width, channels;
  int32_t leads; /* whether the views have the orientation of this field's pictures */
};

/* How the picture of a sample fills its slot; shardio.fields.geometry.Crop and Placed. */
struct view {
  int32_t height, width, orientation; /* of the picture as shown */
  int32_t top, left, crop_height, crop_width;
  int32_t resized_height, resized_width, window_top, window_left;
  int32_t place_top, place_left, place_height, place_width; /* part of the slot that is filled */
  int32_t flip, method, shrink;
};

/* The samples of a batch, with F fields and R roles. They may be some of the columns of longer
 * tables: from one row of places and views to the next there are n elements. */
struct samples {
  int64_t length, num_fields; /* n, F */
  const int32_t *files;                      /* descriptor for each sample of the batch */
  const int64_t *firsts, *offsets, *sizes;   /* [F, n] of headers, data, and bytes of data */
  const uint32_t *checksums, *headers;       /* [F, n] CRC-32 of data and of headers, or NULL */
  const struct view *views;                  /* [R, n] */
  const struct field *fields;                /* [F] */
  uint8_t *status; /* for each sample of the batch: DONE to read it; what became of it */
};

struct worker; /* what one thread needs */

EXPORTED struct worker *shardio_worker_new(void);
EXPORTED void shardio_worker_free(struct worker *worker);

/* Reads the headers of the pictures in a field of the samples [start, stop) whose status is DONE.
 * sizes, [samples of the batch, 3], gets height and width as shown, and orientation; 0 for what the
 * core does not take. */
EXPORTED void shardio_probe(struct worker *worker, const struct samples *samples, int64_t field,
                            int64_t start, int64_t stop, int32_t *sizes);

/* What was done in a call of shardio_fill. */
struct totals {
  int64_t read, decode, resize; /* nanoseconds */
  int64_t samples, bytes;       /* samples put into their slots, and bytes of all their fields */
};

/* Reads, verifies and decodes the samples [start, stop) whose status is DONE, and adds to totals. */
EXPORTED void shardio_fill(struct worker *worker, const struct samples *samples, int64_t start,
                           int64_t stop, struct totals *totals);

/* Resizes a picture as shown into the part of a slot that a view fills, which is the whole of out. At
 * shrink 1 source is the crop's rectangle, else the whole picture at that part of its size. */
EXPORTED enum status shardio_resize(struct worker *worker, const struct picture *source,
                                    const struct view *view, const struct picture *out);

/* pack.c */

struct checker; /* tables and memory that one thread uses for one picture after another */

EXPORTED struct checker *shardio_checker_new(void);
EXPORTED void shardio_checker_free(struct checker *checker);

/* Tells of each of some files, by 1 or 0, whether it is a JPEG the whole of which decodes without a
 * warning of libjpeg, from its codes alone; 0 also where that takes more than a look at the codes. */
EXPORTED void shardio_jpegs_are_sound(struct checker *checker, int64_t count,
                                      const uint8_t *const *files, const size_t *sizes,
                                      uint8_t *sound);

#endif
