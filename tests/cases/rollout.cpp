// Rolls out a step that ph.export(…, compile=True) wrote: rollout STEP.pt2 ARGUMENTS.pt STEPS RESULT.pt
// ARGUMENTS.pt is torch.save([*state, *inputs]); RESULT.pt is read by torch.load.
#include <fstream>
#include <iterator>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

std::vector<char> read(const char* path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

int main(int, char** argv) {
    c10::InferenceMode no_gradients;
    torch::inductor::AOTIModelPackageLoader step(argv[1]);
    c10::IValue given = torch::pickle_load(read(argv[2]));
    std::vector<torch::Tensor> arguments;
    for (const c10::IValue& value : given.toListRef()) arguments.push_back(value.toTensor());
    for (int n = 0; n < std::stoi(argv[3]); ++n) {
        std::vector<torch::Tensor> state = step.run(arguments);
        std::copy(state.begin(), state.end(), arguments.begin());  // the inputs behind it stay
    }
    std::vector<c10::IValue> results(arguments.begin(), arguments.end());
    std::vector<char> content = torch::pickle_save(c10::ivalue::Tuple::create(results));
    std::ofstream(argv[4], std::ios::binary).write(content.data(), content.size());
}
