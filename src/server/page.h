/* page.h - the web page that the server answers at "/": one HTML file without any part from elsewhere.
 *
 * cmake/page.cmake makes the definitions from src/server/page. */
#ifndef MB_SERVER_PAGE_H
#define MB_SERVER_PAGE_H

#include <stddef.h>

extern const unsigned char mb_page[]; /* UTF-8, not terminated */
extern const size_t mb_page_bytes;

/* The value of the header Content-Security-Policy that the page is sent with. */
extern const char mb_page_policy[];

#endif
