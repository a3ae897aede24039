# What `cmake --install` puts where. All of it can be moved afterwards: nothing installed names its prefix.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/moebius)
list(JOIN MOEBIUS_REQUIRES " " MOEBIUS_PC_REQUIRES)

# Libraries and headers; find_package(moebius) gives moebius::moebius and moebius::moebius_static.
install(TARGETS moebius_shared moebius_static EXPORT moebius INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY include/moebius DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT moebius NAMESPACE moebius:: FILE moebiusTargets.cmake DESTINATION ${package_dir})
configure_package_config_file(cmake/moebiusConfig.cmake.in moebiusConfig.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(moebiusConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/moebiusConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/moebiusConfigVersion.cmake
  DESTINATION ${package_dir})

# For pkg-config: the prefix is found from where moebius.pc lies.
file(RELATIVE_PATH MOEBIUS_PC_PREFIX ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
string(REGEX REPLACE "/$" "" MOEBIUS_PC_PREFIX "${MOEBIUS_PC_PREFIX}")
set(MOEBIUS_PC_LIBS "-lpthread -lm")
if(MOEBIUS_CUDA)
  cmake_path(GET CUDA_RUNTIME PARENT_PATH cuda_libraries)
  set(MOEBIUS_PC_LIBS "-L${cuda_libraries} -lcudart_static -lstdc++ -ldl -lrt ${MOEBIUS_PC_LIBS}")
endif()
configure_file(cmake/moebius.pc.in moebius.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/moebius.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

# The command, and what it says about itself: the manual page and the shells' completions.
set(pages)
if(MOEBIUS_CLI)
  install(TARGETS moebius_cli)
  function(write_page name directory)
    add_custom_command(OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/${name} DEPENDS moebius_cli VERBATIM
      COMMAND moebius_cli help ${ARGN} > ${CMAKE_CURRENT_BINARY_DIR}/${name})
    install(FILES ${CMAKE_CURRENT_BINARY_DIR}/${name} DESTINATION ${directory})
    set(pages ${pages} ${CMAKE_CURRENT_BINARY_DIR}/${name} PARENT_SCOPE)
  endfunction()
  write_page(moebius.1 ${CMAKE_INSTALL_MANDIR}/man1 --man)
  write_page(moebius.bash ${CMAKE_INSTALL_DATADIR}/bash-completion/completions --completion bash)
  write_page(_moebius ${CMAKE_INSTALL_DATADIR}/zsh/site-functions --completion zsh)
  write_page(moebius.fish ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d --completion fish)
endif()

# Everything that is installed, without the tests: what ./dev demo builds.
add_custom_target(product ALL DEPENDS moebius_shared moebius_static ${pages})
