# condensec as part of a CMake build.
#
#   find_package(condensec REQUIRED)
#   condensec_compile(TARGET small MODEL model.onnx FOR mobile-cpu DATA samples.npz BUDGET "latency<=0.5x")
#
# `condensec cmake-dir` prints the folder of this file, for -Dcondensec_DIR=...; in an active virtual
# environment find_package finds it by itself.
#
# condensec_compile(TARGET <name> MODEL <model.onnx>
#                   [FOR <target>...] [DATA <samples>] [VAL <samples>] [BUDGET <expr>...] [MAX_DROP <points>]
#                   [METRIC <name>] [HEAL <spec>] [QUANTIZE <spec>] [SEED <n>] [OUTPUT <folder>]
#                   [OPTIONS <flag>...] [DEPENDS <file>...] [EXCLUDE_FROM_ALL])
#
# makes a custom target <name> that runs condensec when an input is newer than its result: the model and its
# external data, the samples, the source of named callables, and condensec itself. Relative paths of inputs
# count from the source folder, OUTPUT from the binary folder (default: <name>.condensed). Properties of the
# target: CONDENSEC_MODEL (the fp32 model.onnx), CONDENSEC_REPORT (report.json), CONDENSEC_OUTPUT (the folder;
# the graph to deploy on <target> is <target>/model.onnx in it).

cmake_minimum_required(VERSION 3.20)

if(NOT CONDENSEC_EXECUTABLE)
  find_program(CONDENSEC_EXECUTABLE condensec
    HINTS "${CMAKE_CURRENT_LIST_DIR}/../../../../../bin" "${CMAKE_CURRENT_LIST_DIR}/../../../bin"
          "${CMAKE_CURRENT_LIST_DIR}/../../../../Scripts"
    DOC "The condensec command")
endif()
if(NOT CONDENSEC_EXECUTABLE)
  set(condensec_FOUND FALSE)
  set(condensec_NOT_FOUND_MESSAGE "the command condensec isn't on PATH; set CONDENSEC_EXECUTABLE to it")
  return()
endif()

function(condensec_compile)
  set(one TARGET MODEL DATA VAL MAX_DROP METRIC HEAL QUANTIZE SEED OUTPUT)
  cmake_parse_arguments(PARSE_ARGV 0 ARG "EXCLUDE_FROM_ALL" "${one}" "FOR;BUDGET;OPTIONS;DEPENDS")
  if(ARG_UNPARSED_ARGUMENTS OR ARG_KEYWORDS_MISSING_VALUES)
    message(FATAL_ERROR "condensec_compile: can't use ${ARG_UNPARSED_ARGUMENTS} ${ARG_KEYWORDS_MISSING_VALUES}")
  endif()
  foreach(needed TARGET MODEL)
    if(NOT ARG_${needed})
      message(FATAL_ERROR "condensec_compile: ${needed} is missing")
    endif()
  endforeach()
  if(NOT ARG_OUTPUT)
    set(ARG_OUTPUT "${ARG_TARGET}.condensed")
  endif()
  get_filename_component(folder "${ARG_OUTPUT}" ABSOLUTE BASE_DIR "${CMAKE_CURRENT_BINARY_DIR}")
  get_filename_component(model "${ARG_MODEL}" ABSOLUTE BASE_DIR "${CMAKE_CURRENT_SOURCE_DIR}")

  set(flags "")
  set(inputs "${model}")
  foreach(kind DATA VAL)
    if(ARG_${kind})
      get_filename_component(path "${ARG_${kind}}" ABSOLUTE BASE_DIR "${CMAKE_CURRENT_SOURCE_DIR}")
      string(TOLOWER "${kind}" flag)
      if(EXISTS "${path}" OR NOT ARG_${kind} MATCHES "^[A-Za-z_][A-Za-z0-9_.]*:")
        list(APPEND inputs "${path}")
        list(APPEND flags "--${flag}" "${path}")
      else() # module:callable
        list(APPEND flags "--${flag}" "${ARG_${kind}}")
      endif()
    endif()
  endforeach()
  foreach(name IN LISTS ARG_FOR)
    list(APPEND flags --target "${name}")
  endforeach()
  foreach(expression IN LISTS ARG_BUDGET)
    list(APPEND flags --budget "${expression}")
  endforeach()
  foreach(option MAX_DROP METRIC HEAL QUANTIZE SEED)
    if(DEFINED ARG_${option})
      string(TOLOWER "${option}" flag)
      string(REPLACE "_" "-" flag "${flag}")
      list(APPEND flags "--${flag}" "${ARG_${option}}")
    endif()
  endforeach()

  set(deploy "")
  foreach(name IN LISTS ARG_FOR)
    list(APPEND deploy "${folder}/${name}/model.onnx")
  endforeach()
  add_custom_command(
    OUTPUT "${folder}/report.json"
    BYPRODUCTS "${folder}/model.onnx" "${folder}/plan.json" "${folder}/report.html" "${folder}/condensec.toml"
               ${deploy}
    COMMAND "${CONDENSEC_EXECUTABLE}" "${model}" ${flags} ${ARG_OPTIONS} --output "${folder}"
            --depfile "${folder}.d" --depfile-target "${folder}/report.json"
    DEPENDS ${inputs} ${ARG_DEPENDS}
    DEPFILE "${folder}.d"
    WORKING_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}"
    COMMENT "condensec ${ARG_MODEL}"
    USES_TERMINAL
    VERBATIM)
  if(ARG_EXCLUDE_FROM_ALL)
    add_custom_target("${ARG_TARGET}" DEPENDS "${folder}/report.json")
  else()
    add_custom_target("${ARG_TARGET}" ALL DEPENDS "${folder}/report.json")
  endif()
  set_target_properties("${ARG_TARGET}" PROPERTIES
    CONDENSEC_MODEL "${folder}/model.onnx"
    CONDENSEC_REPORT "${folder}/report.json"
    CONDENSEC_OUTPUT "${folder}")
endfunction()
