// Loads a condensed model, feeds zeros of the input's shape, and prints the outputs and where the model came from.

#include <onnxruntime_cxx_api.h>

#include <cstdint>
#include <iostream>
#include <vector>

int main(int count, char** arguments) {
  if (count != 2) {
    std::cerr << "usage: classify MODEL.onnx\n";
    return 2;
  }
  try {
    Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "classify");
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(1);
    Ort::Session session(env, arguments[1], options);
    Ort::AllocatorWithDefaultOptions allocator;

    auto shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
    std::size_t size = 1;
    for (auto& dim : shape) {
      if (dim < 0) dim = 1;  // an open batch
      size *= static_cast<std::size_t>(dim);
    }
    std::vector<float> values(size, 0.0f);
    auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    auto input = Ort::Value::CreateTensor<float>(memory, values.data(), values.size(), shape.data(), shape.size());

    auto input_name = session.GetInputNameAllocated(0, allocator);
    auto output_name = session.GetOutputNameAllocated(0, allocator);
    const char* inputs[] = {input_name.get()};
    const char* outputs[] = {output_name.get()};
    auto result = session.Run(Ort::RunOptions{nullptr}, inputs, &input, 1, outputs, 1);

    const float* scores = result[0].GetTensorData<float>();
    auto total = result[0].GetTensorTypeAndShapeInfo().GetElementCount();
    std::cout.precision(9);
    for (std::size_t i = 0; i < total; ++i) std::cout << (i ? " " : "") << scores[i];
    std::cout << "\n";

    auto metadata = session.GetModelMetadata();
    if (auto version = metadata.LookupCustomMetadataMapAllocated("condensec.version", allocator))
      std::cout << "condensec " << version.get() << "\n";
  } catch (const Ort::Exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}
