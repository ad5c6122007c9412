// A C++ gRPC server of the Open Inference Protocol over ONNX Runtime: what a careful team writes by
// hand. Completion queues, as many as threads; the graph runs on the thread that took the request,
// on the bytes of the request.
//
//   server ADDRESS MODELS THREADS [CERTIFICATE KEY]
//
// MODELS holds <name>/1/model.onnx, each with one FP32 input `x` and one FP32 output `y`.

#include <grpcpp/grpcpp.h>
#include <onnxruntime_c_api.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "servery/inference/v1/grpc_service.grpc.pb.h"

namespace fs = std::filesystem;
using Service = inference::GRPCInferenceService::AsyncService;

constexpr int kMaxMessageBytes = 64 << 20;
const OrtApi* const kOrt = OrtGetApiBase()->GetApi(ORT_API_VERSION);

// Ends the process with what ONNX Runtime says went wrong.
void Check(OrtStatus* status) {
  if (status == nullptr) return;
  std::cerr << kOrt->GetErrorMessage(status) << std::endl;
  std::exit(1);
}

// One graph on one thread.
class Model {
 public:
  Model(const OrtEnv* env, const fs::path& path) {
    OrtSessionOptions* options;
    Check(kOrt->CreateSessionOptions(&options));
    Check(kOrt->SetIntraOpNumThreads(options, 1));
    Check(kOrt->CreateSession(env, path.c_str(), options, &session_));
    kOrt->ReleaseSessionOptions(options);
    Check(kOrt->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory_));
  }

  // Answers a request. The response's first output and raw contents are filled.
  void Infer(const inference::ModelInferRequest& request, inference::ModelInferResponse* response) {
    const std::string& raw = request.raw_input_contents(0);
    const auto& shape = request.inputs(0).shape();
    OrtValue* x;
    Check(kOrt->CreateTensorWithDataAsOrtValue(
        memory_, const_cast<char*>(raw.data()), raw.size(), shape.data(), shape.size(),
        ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &x));
    const char* const input = "x";
    const char* const output = "y";
    OrtValue* y = nullptr;
    Check(kOrt->Run(session_, nullptr, &input, &x, 1, &output, 1, &y));
    Render(y, response);
    kOrt->ReleaseValue(y);
    kOrt->ReleaseValue(x);
  }

 private:
  static void Render(OrtValue* y, inference::ModelInferResponse* response) {
    OrtTensorTypeAndShapeInfo* info;
    size_t rank, size;
    float* data;
    Check(kOrt->GetTensorTypeAndShape(y, &info));
    Check(kOrt->GetDimensionsCount(info, &rank));
    Check(kOrt->GetTensorShapeElementCount(info, &size));
    Check(kOrt->GetTensorMutableData(y, reinterpret_cast<void**>(&data)));
    auto* tensor = response->add_outputs();
    tensor->set_name("y");
    tensor->set_datatype("FP32");
    tensor->mutable_shape()->Resize(rank, 0);
    Check(kOrt->GetDimensions(info, tensor->mutable_shape()->mutable_data(), rank));
    response->add_raw_output_contents(data, size * sizeof(float));
    kOrt->ReleaseTensorTypeAndShapeInfo(info);
  }

  OrtSession* session_;
  OrtMemoryInfo* memory_;
};

using Models = std::map<std::string, Model>;

// One place for a call: it waits for a request, answers it, and is replaced by another.
class Call {
 public:
  Call(Service* service, grpc::ServerCompletionQueue* queue, Models* models)
      : service_(service), queue_(queue), models_(models), writer_(&context_) {
    service_->RequestModelInfer(&context_, &request_, &writer_, queue_, queue_, this);
  }

  // Goes on with what its queue reported.
  void Proceed() {
    if (answered_) {
      delete this;
      return;
    }
    new Call(service_, queue_, models_);
    answered_ = true;
    const auto found = models_->find(request_.model_name());
    if (found == models_->end() || request_.raw_input_contents_size() != 1) {
      writer_.FinishWithError({grpc::StatusCode::INVALID_ARGUMENT, "no such model or input"}, this);
      return;
    }
    inference::ModelInferResponse response;
    response.set_model_name(request_.model_name());
    response.set_model_version("1");
    response.set_id(request_.id());
    found->second.Infer(request_, &response);
    writer_.Finish(response, grpc::Status::OK, this);
  }

 private:
  Service* const service_;
  grpc::ServerCompletionQueue* const queue_;
  Models* const models_;
  grpc::ServerContext context_;
  inference::ModelInferRequest request_;
  grpc::ServerAsyncResponseWriter<inference::ModelInferResponse> writer_;
  bool answered_ = false;
};

std::string Read(const char* path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

int main(int argc, char** argv) {
  if (argc != 4 && argc != 6) return 2;
  OrtEnv* env;
  Check(kOrt->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "peer", &env));
  Models models;
  for (const auto& folder : fs::directory_iterator(argv[2]))
    models.try_emplace(folder.path().filename(), env, folder.path() / "1" / "model.onnx");

  auto credentials = grpc::InsecureServerCredentials();
  if (argc == 6) {
    grpc::SslServerCredentialsOptions pair;
    pair.pem_key_cert_pairs.push_back({Read(argv[5]), Read(argv[4])});
    credentials = grpc::SslServerCredentials(pair);
  }
  Service service;
  grpc::ServerBuilder builder;
  builder.AddListeningPort(argv[1], credentials);
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.RegisterService(&service);
  std::vector<std::unique_ptr<grpc::ServerCompletionQueue>> queues(std::stoul(argv[3]));
  for (auto& queue : queues) queue = builder.AddCompletionQueue();
  const auto server = builder.BuildAndStart();
  if (server == nullptr) return 1;

  std::vector<std::thread> threads;
  for (auto& queue : queues)
    threads.emplace_back([&service, &models, &queue] {
      for (int waiting = 0; waiting < 128; ++waiting) new Call(&service, queue.get(), &models);
      void* call;
      for (bool ok; queue->Next(&call, &ok);)
        if (ok) static_cast<Call*>(call)->Proceed();
    });
  for (auto& thread : threads) thread.join();
}
