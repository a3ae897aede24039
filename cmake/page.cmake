# Joins the parts of the web page into one file, and writes that file as a C array with its Content-Security-Policy.
#
#   cmake -DSOURCE=src/server/page -DOUTPUT=build/cpu/page -P cmake/page.cmake
#
# OUTPUT gets page.html, page.csp (the header's value) and page.c (src/server/page.h declares what is in it). The policy
# allows one script and one style sheet, by the SHA-256 of their text. So nothing that a model writes can run as code.
set(SCRIPTS dom markdown store api metrics message chat main)

# The base64 of a SHA-256 that is given in hexadecimal, as a policy wants it.
function(base64_of_sha256 hex result)
  set(alphabet "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
  set(text "")
  foreach(i RANGE 21) # 3 hexadecimal digits are 2 characters; 2 zeros fill up the last 3
    math(EXPR at "3 * ${i}")
    string(SUBSTRING "${hex}00" ${at} 3 digits)
    math(EXPR high "0x${digits} >> 6")
    math(EXPR low "0x${digits} & 63")
    string(SUBSTRING "${alphabet}" ${high} 1 first)
    string(SUBSTRING "${alphabet}" ${low} 1 second)
    string(APPEND text "${first}${second}")
  endforeach()
  string(SUBSTRING "${text}" 0 43 text)
  set(${result} "${text}=" PARENT_SCOPE)
endfunction()

file(READ ${SOURCE}/page.html page)
file(READ ${SOURCE}/page.css style)
set(script "\n\"use strict\";\n")
foreach(name IN LISTS SCRIPTS)
  file(READ ${SOURCE}/${name}.js part)
  string(APPEND script "${part}")
endforeach()
set(style "\n${style}")

string(SHA256 script_hex "${script}")
string(SHA256 style_hex "${style}")
base64_of_sha256(${script_hex} script_hash)
base64_of_sha256(${style_hex} style_hash)
string(CONCAT policy "default-src 'none'; script-src 'sha256-${script_hash}'; style-src 'sha256-${style_hash}'; "
  "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'")

string(REPLACE "@POLICY@" "${policy}" page "${page}")
string(REPLACE "@STYLE@" "${style}" page "${page}")
string(REPLACE "@SCRIPT@" "${script}" page "${page}")
set(header_policy "${policy}; frame-ancestors 'none'") # a <meta> cannot say this

file(MAKE_DIRECTORY ${OUTPUT})
file(WRITE ${OUTPUT}/page.html "${page}")
file(WRITE ${OUTPUT}/page.csp "${header_policy}")
file(READ ${OUTPUT}/page.html bytes HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
string(REGEX REPLACE "(0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,)" "\\1\n" bytes
  "${bytes}")
file(WRITE ${OUTPUT}/page.c
  "/* Made by cmake/page.cmake from src/server/page. */\n"
  "#include \"server/page.h\"\n\n"
  "const char mb_page_policy[] = \"${header_policy}\";\n"
  "const unsigned char mb_page[] = {\n${bytes}};\n"
  "const size_t mb_page_bytes = sizeof mb_page;\n")
